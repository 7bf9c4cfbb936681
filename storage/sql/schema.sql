-- The whole schema as it is after all migrations, to be read. Nothing runs this file but the test that
-- compares it with what the migrations make: change both.

-- What migrations were applied, facts fixed at creation, projects and their keys.
-- Text columns that are compared or indexed are COLLATE "C": ids are opaque, and bytes compare fastest.

CREATE TABLE schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE system (
    name text COLLATE "C" PRIMARY KEY,
    value jsonb NOT NULL,
    fixed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE projects (
    project_id text COLLATE "C" PRIMARY KEY CHECK (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- changed_by is the transaction that last wrote the row: see storage/registry.py, changed_keys.
CREATE TABLE api_keys (
    key_id uuid PRIMARY KEY DEFAULT uuidv7(),
    project_id text COLLATE "C" REFERENCES projects,
    kind text NOT NULL CHECK (kind IN ('write', 'read', 'import', 'admin')),
    key_hash bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT only_admin_keys_are_of_no_project CHECK (project_id IS NOT NULL OR kind = 'admin')
);

CREATE INDEX api_keys_project ON api_keys (project_id);
CREATE INDEX api_keys_changed ON api_keys (changed_by);

-- The event store: one wide table of events, its checkpoints, and what could not be stored.
-- Fixed-length columns first: no padding, and rows are read faster. The lengths are the gateway's; to have them
-- here too costs COPY nothing that can be measured (a CHECK of them 0.1 to 0.3 µs a row).
-- EXTERNAL: a row of over 2 kB is not compressed (pglz), which for events of 2.3 kB saves 40 % of COPY's CPU
-- time (34 against 20 µs a row) for twice the space; smaller rows are never compressed.

CREATE TABLE events_log (
    "timestamp" timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    log_offset bigint NOT NULL,
    partition_id smallint NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    event_id varchar(128) COLLATE "C" NOT NULL,
    event_type varchar(100) COLLATE "C" NOT NULL,
    user_id varchar(256) COLLATE "C",
    anonymous_id varchar(256) COLLATE "C",
    session_id varchar(256) COLLATE "C",
    site_id varchar(253) COLLATE "C",
    client_id varchar(100) COLLATE "C",
    properties jsonb STORAGE EXTERNAL NOT NULL,
    context jsonb STORAGE EXTERNAL,

    -- The documents' other names for the same facts. Virtual: no storage, no cost at writing.
    visitor_id text COLLATE "C" GENERATED ALWAYS AS (anonymous_id) VIRTUAL,
    data jsonb GENERATED ALWAYS AS (properties) VIRTUAL,
    event_data jsonb GENERATED ALWAYS AS (properties) VIRTUAL,
    url text GENERATED ALWAYS AS (context #>> '{page,url}') VIRTUAL,
    path text GENERATED ALWAYS AS (context #>> '{page,path}') VIRTUAL,
    user_agent text GENERATED ALWAYS AS (context ->> 'userAgent') VIRTUAL,
    ip_address inet GENERATED ALWAYS AS ((context ->> 'ip')::inet) VIRTUAL,
    -- All rows of one log record are stored by one transaction: the record is the batch.
    batch_id text GENERATED ALWAYS AS (partition_id::text || '-' || log_offset::text) VIRTUAL,
    -- The event as the API gives it. Only immutable built-ins are allowed here, which the output of a
    -- timestamp is not: its text is put together from numbers, YYYYMMDDHHMMSS and microseconds.
    raw_event_data jsonb GENERATED ALWAYS AS (
        jsonb_set(
            jsonb_set(
                jsonb_strip_nulls(
                    jsonb_object(
                        ARRAY[
                            'eventId', 'eventType', 'projectId', 'userId', 'anonymousId', 'sessionId', 'siteId', 'timestamp'
                        ],
                        ARRAY[
                            event_id, event_type, project_id, user_id, anonymous_id, session_id, site_id,
                            regexp_replace(
                                lpad(
                                    trunc(
                                        extract(year FROM "timestamp" AT TIME ZONE 'UTC') * 10000000000000000
                                        + extract(month FROM "timestamp" AT TIME ZONE 'UTC') * 100000000000000
                                        + extract(day FROM "timestamp" AT TIME ZONE 'UTC') * 1000000000000
                                        + extract(hour FROM "timestamp" AT TIME ZONE 'UTC') * 10000000000
                                        + extract(minute FROM "timestamp" AT TIME ZONE 'UTC') * 100000000
                                        + extract(microseconds FROM "timestamp" AT TIME ZONE 'UTC')
                                    )::text,
                                    20, '0'
                                ),
                                '^(....)(..)(..)(..)(..)(..)(......)$', '\1-\2-\3T\4:\5:\6.\7Z'
                            )
                        ]
                    )
                ),
                '{properties}', properties
            ),
            '{context}', coalesce(context, 'null'::jsonb)
        )
    ) VIRTUAL
) PARTITION BY RANGE (created_at);

-- Measured by load_tests/measure_indexes.py; the numbers stand in storage/sql/indexes.md.
-- Newest events of a project, in order of event time.
CREATE INDEX events_log_newest ON events_log (project_id, "timestamp");

-- Everything else is found through one BRIN: a page range is left out unless its Bloom filters may hold the
-- id. COPY pays next to nothing, because new ranges are unsummarised until summarise_lookup.sql summarises them
-- (they are always read). The filters' sizes are chosen so that a range's filters together fit in one index page.
CREATE INDEX events_log_lookup ON events_log USING brin (
    created_at,
    event_type text_bloom_ops (n_distinct_per_range = 64, false_positive_rate = 0.02),
    event_id text_bloom_ops (n_distinct_per_range = 1200, false_positive_rate = 0.02),
    user_id text_bloom_ops (n_distinct_per_range = 600, false_positive_rate = 0.02),
    anonymous_id text_bloom_ops (n_distinct_per_range = 600, false_positive_rate = 0.02),
    session_id text_bloom_ops (n_distinct_per_range = 600, false_positive_rate = 0.02)
) WITH (pages_per_range = 32);

-- One partition a UTC day of storing; there is no default partition. The table is made first and attached
-- then: ATTACH takes SHARE UPDATE EXCLUSIVE on events_log, which COPY's ROW EXCLUSIVE does not conflict with,
-- and nobody else knows the new table, so that neither waits for the other. The advisory lock puts those
-- who add days in a row. Returns whether the day was missing.
CREATE FUNCTION events_log_add_day(day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition_name text := 'events_log_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('events_log_add_day'));
    IF to_regclass(partition_name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE events_log INCLUDING ALL)', partition_name);
    EXECUTE format(
        'ALTER TABLE events_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition_name, to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00'
    );
    RETURN true;
END
$$;

-- Progress of the sinks that commit to PostgreSQL (CK-1). Updated by every write: room in the page keeps
-- the updates within it.
CREATE TABLE checkpoints (
    sink text COLLATE "C" NOT NULL,
    partition_id smallint NOT NULL,
    epoch bigint NOT NULL,
    next_offset bigint NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, partition_id)
) WITH (fillfactor = 20);

-- Events that can never be stored as they are, with the reason; payload is the event as JSON.
-- project_id and event_id are for finding it: what text cannot hold is replaced in them, not in the payload.
CREATE TABLE dead_letters (
    partition_id smallint NOT NULL,
    log_offset bigint NOT NULL,
    row_number integer NOT NULL,
    project_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    received_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    error_code text NOT NULL,
    message text NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (partition_id, log_offset, row_number)
);

CREATE INDEX dead_letters_event ON dead_letters (project_id, event_id);

-- Conservation counts (LG-1), written in the transaction that stores the events they count.
-- No index on the counters and room in the pages, so that updates stay within their page.

CREATE TABLE ledger (
    project_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    received bigint NOT NULL DEFAULT 0,
    stored bigint NOT NULL DEFAULT 0,
    duplicate bigint NOT NULL DEFAULT 0,
    dead_lettered bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    lost bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, hour)
) WITH (fillfactor = 70);
