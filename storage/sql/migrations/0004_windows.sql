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

-- Who recomputed a day last: an owner of an older epoch does not put back what it had read before.
CREATE TABLE recomputed_days (
    project_id varchar(100) COLLATE "C" NOT NULL,
    day date NOT NULL,
    epoch bigint NOT NULL,
    recomputed_at timestamptz NOT NULL,
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
    PRIMARY KEY (project_id, name)
);

CREATE INDEX metric_definitions_changed ON metric_definitions (changed_by);
