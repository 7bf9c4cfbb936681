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

-- LG-1: received = stored + duplicate + dead_lettered + rejected + lost + aggregated
ALTER TABLE ledger ADD COLUMN aggregated bigint NOT NULL DEFAULT 0;
