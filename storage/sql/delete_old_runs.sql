-- $1 time, $2 limit. Runs of the retention, and what each removed.
WITH gone AS (
    DELETE FROM retention_runs
    WHERE run_id = ANY(ARRAY(SELECT run_id FROM retention_runs WHERE started_at < $1 LIMIT $2))
    RETURNING pg_column_size(retention_runs.*) AS bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
