-- $1 project, $2 time. What delete_old_aggregated.sql would delete.
SELECT count(*) AS rows, coalesce(sum(pg_column_size(aggregated_events.*)), 0)::bigint AS bytes
FROM aggregated_events
WHERE project_id = $1 AND minute < $2
