-- $1 time, $2 limit. Runs of the retention, and what each removed.
WITH old AS (
    SELECT ctid AS place, pg_column_size(retention_runs.*) AS bytes
    FROM retention_runs
    WHERE started_at < $1
    LIMIT $2
),
gone AS (
    DELETE FROM retention_runs USING old WHERE retention_runs.ctid = old.place RETURNING old.bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
