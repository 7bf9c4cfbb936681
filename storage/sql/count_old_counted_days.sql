-- $1 project, $2 time. What delete_old_counted_days.sql would delete.
SELECT count(*) AS rows, coalesce(sum(pg_column_size(counted_days.*)), 0)::bigint AS bytes
FROM counted_days
WHERE project_id = $1 AND day < ($2::timestamptz AT TIME ZONE 'UTC')::date
