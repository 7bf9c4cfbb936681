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
    created_at timestamptz NOT NULL DEFAULT now(),
    -- A project is of one client, of itself when client_id is null, from the record `client_since` of its partition's
    -- log on.
    client_id text COLLATE "C" CHECK (client_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    client_since bigint NOT NULL DEFAULT 0
);

CREATE INDEX projects_client ON projects (client_id) WHERE client_id IS NOT NULL;

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
-- who add days in a row. Why a day is not vacuumed for what is inserted: migration 0013. Returns whether the day was
-- missing.
CREATE FUNCTION events_log_add_day(day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition_name text := 'events_log_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('events_log_add_day'));
    IF to_regclass(partition_name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE %I (LIKE events_log INCLUDING ALL)'
        ' WITH (autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1)',
        partition_name
    );
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
    aggregated bigint NOT NULL DEFAULT 0,
    -- Of what was stored, dead-lettered and aggregated: what was removed when its time was over.
    expired bigint NOT NULL DEFAULT 0,
    expired_dead_letters bigint NOT NULL DEFAULT 0,
    expired_aggregated bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, hour)
) WITH (fillfactor = 70);

-- Windows: roll-ups of what was counted, days that must be counted again, definitions of metrics.

-- One row a window and group. `dimensions` is for people; dimensions_hash names the group (0: all events), and
-- dimension_names keeps the order of the definition, which jsonb does not. `value` is what the metric's aggregation
-- makes of the row. Sums are exact. `sketches` (storage/aggregate.py) only where there is a unique count or a
-- percentile; EXTERNAL, because hashes and registers do not get smaller by compressing.
-- (epoch, next_offset) is how far the partition's log was counted: an older pair changes nothing (FN-1, CK-1).
-- A recomputed row holds events that came too late for any window: no window may replace it, see storage/rollups.py.
CREATE TABLE metric_aggregates (
    "timestamp" timestamptz NOT NULL,
    dimensions_hash bigint NOT NULL,
    count bigint NOT NULL,
    minimum double precision,
    maximum double precision,
    epoch bigint NOT NULL,
    next_offset bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    recomputed boolean NOT NULL DEFAULT false,
    project_id varchar(100) COLLATE "C" NOT NULL,
    metric_name varchar(100) COLLATE "C" NOT NULL,
    metric_type varchar(20) COLLATE "C" NOT NULL,
    time_granularity varchar(10) COLLATE "C" NOT NULL CHECK (time_granularity IN ('minute', 'hour', 'day')),
    value numeric,
    sum numeric,
    dimensions jsonb NOT NULL,
    dimension_names text[] NOT NULL,
    sketches bytea STORAGE EXTERNAL,
    PRIMARY KEY (project_id, metric_name, time_granularity, "timestamp", dimensions_hash)
) WITH (fillfactor = 85);

-- Whoever begins to count a day again takes a ticket, and only the holder of the last one may write (FN-1). `audited`:
-- whether the daily job has counted the day since it was last recomputed.
CREATE SEQUENCE recount_tickets;

CREATE TABLE recomputed_days (
    project_id varchar(100) COLLATE "C" NOT NULL,
    day date NOT NULL,
    ticket bigint NOT NULL,
    recomputed_at timestamptz NOT NULL,
    audited boolean NOT NULL DEFAULT false,
    PRIMARY KEY (project_id, day)
);

CREATE INDEX recomputed_days_due ON recomputed_days (day) WHERE NOT audited;

-- With which metrics of their own the days of a project were counted again, in the words of
-- analytics_actors/windows/definition_book.py.
CREATE TABLE counted_days (
    project_id varchar(100) COLLATE "C" NOT NULL,
    day date NOT NULL,
    built text NOT NULL,
    PRIMARY KEY (project_id, day)
);

-- UTC days of event time that hold events which no window counted, marked by the transaction that stores them.
-- Each mark has a new version, so that a mark is taken away only by who has read what it stands for.
CREATE SEQUENCE late_day_versions;

CREATE TABLE late_days (
    project_id varchar(100) COLLATE "C" NOT NULL,
    day date NOT NULL,
    partition_id smallint NOT NULL,
    version bigint NOT NULL,
    first_marked timestamptz NOT NULL,
    last_marked timestamptz NOT NULL,
    PRIMARY KEY (project_id, day)
) WITH (fillfactor = 50);

-- Metrics that users define. A version is never used twice, also not by a metric that is deleted and made again.
-- changed_by is the transaction that last wrote the row: see storage/metric_registry.py, changes_since.
CREATE SEQUENCE metric_definition_versions;

CREATE TABLE metric_definitions (
    project_id text COLLATE "C" NOT NULL REFERENCES projects,
    name varchar(100) COLLATE "C" NOT NULL,
    definition jsonb NOT NULL,
    version bigint NOT NULL DEFAULT nextval('metric_definition_versions'),
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- When it got this definition: windows count it since then.
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, name)
);

CREATE INDEX metric_definitions_changed ON metric_definitions (changed_by);

-- Patterns: what was detected in metrics, its delivery to webhooks, and how far each metric was judged.

-- pattern_id is a hash of project, metric, kind, window and dimensions, so that the same pattern found twice is one row.
-- A pending delivery is attempted when next_attempt_at has come, which every attempt moves on before it is made: who
-- crashes in an attempt has it made again.
CREATE TABLE patterns (
    pattern_id uuid PRIMARY KEY,
    window_start timestamptz NOT NULL,
    detected_at timestamptz NOT NULL,
    value double precision NOT NULL,
    mean double precision NOT NULL,
    expected double precision NOT NULL,
    sigmas double precision NOT NULL,
    events bigint NOT NULL,
    windows integer NOT NULL,
    seasonal boolean NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    metric_name varchar(100) COLLATE "C" NOT NULL,
    kind varchar(20) COLLATE "C" NOT NULL CHECK (kind IN ('spike', 'drop', 'anomaly', 'trend')),
    direction varchar(10) COLLATE "C" NOT NULL CHECK (direction IN ('up', 'down')),
    window_size varchar(10) COLLATE "C" NOT NULL CHECK (window_size IN ('1m', '5m', '1h')),
    dimensions jsonb NOT NULL,
    delivery varchar(20) COLLATE "C" NOT NULL CHECK (delivery IN ('none', 'pending', 'delivered', 'failed')),
    webhook_url text,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    delivered_at timestamptz,
    last_error text,
    CHECK ((delivery = 'none') = (webhook_url IS NULL))
) WITH (fillfactor = 90);

CREATE INDEX patterns_newest ON patterns (project_id, window_start, pattern_id);
CREATE INDEX patterns_pending ON patterns (next_attempt_at) WHERE delivery = 'pending';

-- The detector of a metric: windows before next_start were judged. Never moved back.
CREATE TABLE pattern_states (
    project_id varchar(100) COLLATE "C" NOT NULL,
    metric_name varchar(100) COLLATE "C" NOT NULL,
    next_start timestamptz NOT NULL,
    state jsonb NOT NULL,
    PRIMARY KEY (project_id, metric_name)
) WITH (fillfactor = 50);

-- What a project's webhooks are signed with. It must be known to sign, so it cannot be kept as a hash.
CREATE TABLE webhook_secrets (
    project_id text COLLATE "C" PRIMARY KEY REFERENCES projects,
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Aggregate-only events: one record a minute, event type and group of their metric, instead of their rows.

-- Written by the transaction that moves the checkpoint, merged in Python; `state` (storage/aggregate.py) is what later
-- events of the minute are merged into, the numbers before it are for people and their tools. `events` is all events,
-- `count` those with a value. Late ones (too late for any window) and those of another form of the definition (`shape`)
-- have records of their own. [first_offset, next_offset): where in the partition's log the events are.
CREATE TABLE aggregated_events (
    minute timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    shape bigint NOT NULL,
    dimensions_hash bigint NOT NULL,
    first_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    events bigint NOT NULL,
    count bigint NOT NULL,
    unique_count bigint,
    minimum double precision,
    maximum double precision,
    mean double precision,
    p50 double precision,
    p90 double precision,
    p95 double precision,
    p99 double precision,
    partition_id smallint NOT NULL,
    late boolean NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    metric_name varchar(100) COLLATE "C" NOT NULL,
    event_type varchar(100) COLLATE "C" NOT NULL,
    sum numeric,
    dimensions jsonb NOT NULL,
    dimension_names text[] NOT NULL,
    state bytea STORAGE EXTERNAL NOT NULL,
    PRIMARY KEY (project_id, minute, metric_name, event_type, shape, late, dimensions_hash)
) WITH (fillfactor = 70);

-- The lake: which objects hold which events, what is being exported or replaced, and what is to be looked through beside.

-- What an exporter or a compaction is about to do; objects are named after the plan. Ranges of exports are in three
-- arrays of one length, in the order of the partitions; file_ids are the files that a swap retires. Ended plans are
-- kept for a while: they tell a repeated commit from one that is too late.
CREATE TABLE lake_plans (
    plan_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('export', 'compact', 'move', 'rewrite', 'expire')),
    state text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'committed', 'cancelled')),
    partition_ids smallint[] NOT NULL DEFAULT '{}',
    first_offsets bigint[] NOT NULL DEFAULT '{}',
    next_offsets bigint[] NOT NULL DEFAULT '{}',
    file_ids bigint[] NOT NULL DEFAULT '{}'
);

CREATE INDEX lake_plans_open ON lake_plans (created_at) WHERE state = 'open';
CREATE INDEX lake_plans_ended ON lake_plans (ended_at) WHERE state <> 'open';

-- One row an object. It is live until retired_at; a retired one is only a name that readers may still hold.
-- id_digest is a sum modulo 2^64, as a signed number.
CREATE TABLE lake_files (
    file_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    plan_id bigint NOT NULL,
    hour timestamptz NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    id_digest bigint NOT NULL,
    min_timestamp timestamptz NOT NULL,
    max_timestamp timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    key text COLLATE "C" NOT NULL UNIQUE,
    checksum text COLLATE "C" NOT NULL,
    tier text COLLATE "C" NOT NULL DEFAULT 'hot' CHECK (tier IN ('hot', 'cold')),
    -- When the newest of its events was exported, which no merge and no move changes.
    exported_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX lake_files_live ON lake_files (hour, file_id) WHERE retired_at IS NULL;
CREATE INDEX lake_files_retired ON lake_files (retired_at) WHERE retired_at IS NOT NULL;

-- What live files cover: the events of the hour among the records [first_offset, next_offset) of a partition, each
-- once. Rows of retired files are deleted, here and below.
CREATE TABLE lake_file_ranges (
    hour timestamptz NOT NULL,
    first_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    file_id bigint NOT NULL REFERENCES lake_files,
    partition_id smallint NOT NULL,
    PRIMARY KEY (partition_id, hour, first_offset)
);

CREATE INDEX lake_file_ranges_file ON lake_file_ranges (file_id);
CREATE INDEX lake_file_ranges_next ON lake_file_ranges (partition_id, next_offset);

-- Whose events a live file holds; `bytes` is the project's share of the file's.
CREATE TABLE lake_file_projects (
    hour timestamptz NOT NULL,
    file_id bigint NOT NULL REFERENCES lake_files,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    PRIMARY KEY (project_id, hour, file_id)
);

CREATE INDEX lake_file_projects_file ON lake_file_projects (file_id);

-- What was exported when: for each partition ranges without a gap between them, up to the checkpoint of the sink 'lake'.
CREATE TABLE lake_exports (
    first_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    plan_id bigint NOT NULL,
    exported_at timestamptz NOT NULL DEFAULT now(),
    partition_id smallint NOT NULL,
    PRIMARY KEY (partition_id, next_offset)
);

CREATE INDEX lake_exports_time ON lake_exports (exported_at);

-- Exported on a UTC day, for billing: neither compaction nor retention changes it.
CREATE TABLE lake_volumes (
    project_id varchar(100) COLLATE "C" NOT NULL,
    day date NOT NULL,
    files bigint NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (project_id, day)
) WITH (fillfactor = 70);

-- No row of events_log at or above the partition's checkpoint of the lake has a created_at before `since`.
CREATE TABLE lake_tails (
    partition_id smallint PRIMARY KEY,
    since timestamptz NOT NULL
) WITH (fillfactor = 20);

-- The stored events as metadata of the lake's files. 'processed' is what is in a file; what could not be stored
-- ('failed' in the documents) is in dead_letters. `id` is a hash of the idempotency key, 63 bits. No table holds this,
-- so nothing has to be written for each event, and no index but those of events_log serves it.
CREATE VIEW events_metadata AS
SELECT
    hashtextextended(e.event_id, hashtextextended(e.project_id, 0)) & 9223372036854775807 AS id,
    e.event_id,
    e.user_id,
    e.event_type,
    e.project_id,
    e."timestamp",
    e.received_at AS ingested_at,
    f.key AS storage_path,
    to_char(e."timestamp" AT TIME ZONE 'UTC', '"year="YYYY"/month="MM"/day="DD') AS file_partition,
    encode(sha256(convert_to(e.properties::text, 'UTF8')), 'hex') AS properties_hash,
    CASE WHEN f.file_id IS NULL THEN 'pending' ELSE 'processed' END AS status,
    e.created_at
FROM events_log AS e
LEFT JOIN lake_file_ranges AS r
    ON r.partition_id = e.partition_id AND r.hour = date_trunc('hour', e."timestamp", 'UTC')
    AND r.first_offset <= e.log_offset AND r.next_offset > e.log_offset
LEFT JOIN lake_files AS f ON f.file_id = r.file_id;

-- The stored events with the documents' columns of the export: said by the checkpoint and the ranges that were
-- exported, not by a mark in each row. The client is the event's own, which its domain would tell, or its project's.
CREATE VIEW events_export AS
SELECT
    hashtextextended(e.event_id, hashtextextended(e.project_id, 0)) & 9223372036854775807 AS id,
    e."timestamp",
    e.received_at,
    e.created_at,
    e.log_offset,
    e.partition_id,
    e.project_id,
    e.event_id,
    e.event_type,
    e.user_id,
    e.anonymous_id,
    e.session_id,
    e.site_id,
    coalesce(e.client_id, p.client_id, e.project_id)::varchar(100) AS client_id,
    e.properties,
    e.context,
    e.visitor_id,
    e.data,
    e.event_data,
    e.url,
    e.path,
    e.user_agent,
    e.ip_address,
    e.batch_id,
    e.raw_event_data,
    CASE WHEN e.log_offset < c.next_offset THEN 'exported' ELSE 'pending' END AS export_status,
    x.exported_at AS processed_at
FROM events_log AS e
LEFT JOIN checkpoints AS c ON c.sink = 'lake' AND c.partition_id = e.partition_id
LEFT JOIN LATERAL (
    SELECT lake_exports.exported_at
    FROM lake_exports
    WHERE lake_exports.partition_id = e.partition_id AND lake_exports.next_offset > e.log_offset
    ORDER BY lake_exports.next_offset
    LIMIT 1
) AS x ON true
LEFT JOIN projects AS p ON p.project_id = e.project_id;


-- Where the lake's events are delivered to. The law is in storage/destinations.py.

-- `credentials` is the name of a profile that whoever runs the system has set up; no secret is kept here. What was
-- exported before fresh_at is delivered.
CREATE TABLE lake_destinations (
    created_at timestamptz NOT NULL DEFAULT now(),
    fresh_at timestamptz,
    delivered_at timestamptz,
    failing_since timestamptz,
    files bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    enabled boolean NOT NULL DEFAULT true,
    path_style boolean NOT NULL DEFAULT false,
    destination_id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL CHECK (owner IN ('project', 'client', 'all')),
    owner_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('client', 'backup')),
    url text NOT NULL,
    endpoint_url text NOT NULL DEFAULT '',
    region text NOT NULL DEFAULT '',
    credentials text NOT NULL DEFAULT '',
    last_error text NOT NULL DEFAULT '',
    UNIQUE (url, endpoint_url, owner, owner_id)
) WITH (fillfactor = 70);

-- Up to where a project's events are delivered, '' being all projects of the partition: those of the records
-- [next_offset, until_offset) are not; until_offset is null where there is no end.
CREATE TABLE lake_destination_stretches (
    first_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    until_offset bigint,
    partition_id smallint NOT NULL,
    destination_id text COLLATE "C" NOT NULL REFERENCES lake_destinations ON DELETE CASCADE,
    project_id varchar(100) COLLATE "C" NOT NULL,
    PRIMARY KEY (destination_id, project_id, partition_id, first_offset)
) WITH (fillfactor = 70);

CREATE INDEX lake_destination_stretches_project ON lake_destination_stretches (project_id);

-- What is being delivered, in arrays of one length: of each destination one delivery at most. The objects are named
-- after it.
CREATE TABLE lake_deliveries (
    delivery_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    destination_id text COLLATE "C" NOT NULL UNIQUE REFERENCES lake_destinations ON DELETE CASCADE,
    project_ids varchar(100)[] COLLATE "C" NOT NULL,
    partition_ids smallint[] NOT NULL,
    first_offsets bigint[] NOT NULL,
    next_offsets bigint[] NOT NULL
);

-- The hours that are done of a delivery under way.
CREATE TABLE lake_delivery_hours (
    delivery_id bigint NOT NULL REFERENCES lake_deliveries ON DELETE CASCADE,
    hour timestamptz NOT NULL,
    PRIMARY KEY (delivery_id, hour)
);

-- Delivered on a UTC day, for billing; kept when the destination is not. A file of several projects counts for each.
CREATE TABLE lake_delivery_volumes (
    day date NOT NULL,
    files bigint NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    destination_id text COLLATE "C" NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    PRIMARY KEY (destination_id, project_id, day)
) WITH (fillfactor = 70);

CREATE INDEX lake_delivery_volumes_project ON lake_delivery_volumes (project_id, day);

-- The documents' queries name events_log: with this schema first on the search_path they run as they are written.
CREATE SCHEMA documented;

CREATE VIEW documented.events_log AS SELECT * FROM public.events_export;

-- Retention: how long what is kept, where a project's events begin, and what was removed.

-- Limits of projects that have others than the settings'. NULL: the settings' one; 0: for ever.
CREATE TABLE retention_limits (
    project_id text COLLATE "C" PRIMARY KEY REFERENCES projects,
    raw_days integer CHECK (raw_days >= 0),
    lake_days integer CHECK (lake_days >= 0),
    rollup_days integer CHECK (rollup_days >= 0),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- Events of the project that were stored before this may be gone from events_log; a project without a row has all of
-- them.
CREATE TABLE expired_events (
    project_id varchar(100) COLLATE "C" PRIMARY KEY,
    stored_before timestamptz NOT NULL
);

-- Runs of the retention, and what each removed: written by the transaction that removes it, so that bounded batches
-- add up in one row.
CREATE TABLE retention_runs (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    kept text[] NOT NULL DEFAULT '{}'
);

CREATE TABLE retention_removals (
    run_id bigint NOT NULL REFERENCES retention_runs ON DELETE CASCADE,
    removed_at timestamptz NOT NULL DEFAULT now(),
    files bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (run_id, kind, name)
);


-- Jobs that count whole days again. A daily one is named by its day, so that it is there once.
CREATE TABLE batch_jobs (
    job_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('daily', 'command', 'backfill')),
    daily date UNIQUE,
    first_day date,
    last_day date,
    project_id varchar(100) COLLATE "C",
    metric_name varchar(100) COLLATE "C",
    dry_run boolean NOT NULL DEFAULT false,
    state text COLLATE "C" NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'incomplete')),
    days_open bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz,
    CHECK ((kind = 'daily') = (daily IS NOT NULL))
);

CREATE INDEX batch_jobs_open ON batch_jobs (job_id) WHERE state IN ('waiting', 'running');

-- What is counted in one go: the same days of some projects. `turn` counts how often it was begun: who was given an
-- earlier turn reports nothing any more.
CREATE TABLE batch_pieces (
    job_id bigint NOT NULL REFERENCES batch_jobs ON DELETE CASCADE,
    piece integer NOT NULL,
    first_day date NOT NULL,
    last_day date NOT NULL,
    turn integer NOT NULL DEFAULT 0,
    state text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'running', 'done', 'failed')),
    not_before timestamptz NOT NULL DEFAULT now(),
    events bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    superseded boolean NOT NULL DEFAULT false,
    worker text COLLATE "C",
    error text,
    projects text[] NOT NULL,
    PRIMARY KEY (job_id, piece)
) WITH (fillfactor = 80);


-- Records of the partition log that cannot be read, and that somebody has decided to go without. The law is in
-- storage/set_aside.py. `counts` is null when the record does not even tell how many events it has; stepped_over_at is set
-- by the transaction that moves the event store's checkpoint over the record, recounted_at when the windows hold nothing of
-- it any more.
CREATE TABLE set_aside_records (
    log_offset bigint NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    stepped_over_at timestamptz,
    recounted_at timestamptz,
    partition_id smallint NOT NULL,
    reason text NOT NULL,
    counts jsonb,
    raw bytea NOT NULL,
    PRIMARY KEY (partition_id, log_offset)
);

CREATE INDEX set_aside_records_open ON set_aside_records (partition_id) WHERE recounted_at IS NULL;

-- How far a partition's log was counted when roll-ups were last removed as counted no more: a row that is gone cannot say
-- it any more. Nothing that was counted less far is written since (FN-1, CK-1).
CREATE TABLE rollup_floors (
    partition_id smallint PRIMARY KEY,
    epoch bigint NOT NULL,
    next_offset bigint NOT NULL
);
