-- Retention: how long what is kept, where a project's events begin, and what was removed.

-- What became of rows that were removed when their time was over: they stay counted where they were, and here as well.
ALTER TABLE ledger ADD COLUMN expired bigint NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN expired_dead_letters bigint NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN expired_aggregated bigint NOT NULL DEFAULT 0;
-- Daily partitions that somebody has dropped before there was a retention.
UPDATE ledger SET expired = stored
WHERE hour < (
    SELECT coalesce(min(to_date(right(day.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC'), '-infinity')
    FROM pg_inherits
    JOIN pg_class AS day ON day.oid = pg_inherits.inhrelid
    WHERE pg_inherits.inhparent = 'events_log'::regclass
);

-- When the newest of the file's events was exported, which no merge and no move changes: what is imported late is
-- kept from then on.
ALTER TABLE lake_files ADD COLUMN exported_at timestamptz NOT NULL DEFAULT now();
UPDATE lake_files SET exported_at = created_at;

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
