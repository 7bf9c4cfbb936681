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
    tier text COLLATE "C" NOT NULL DEFAULT 'hot' CHECK (tier IN ('hot', 'cold'))
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
-- exported, not by a mark in each row.
CREATE VIEW events_export AS
SELECT
    hashtextextended(e.event_id, hashtextextended(e.project_id, 0)) & 9223372036854775807 AS id,
    e.*,
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
) AS x ON true;
