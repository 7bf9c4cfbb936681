-- $1 project, $2 metric, $3 granularity, $4 time. What delete_old_rollups.sql would delete.
SELECT count(*) AS rows, coalesce(sum(pg_column_size(metric_aggregates.*)), 0)::bigint AS bytes
FROM metric_aggregates
WHERE project_id = $1 AND metric_name = $2 AND time_granularity = $3 AND "timestamp" < $4
