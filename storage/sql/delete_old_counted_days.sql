-- $1 project, $2 time, $3 limit. Notes of days that were over before: their roll-ups have gone with the same limit.
WITH old AS (
    SELECT day, pg_column_size(counted_days.*) AS bytes
    FROM counted_days
    WHERE project_id = $1 AND day < ($2::timestamptz AT TIME ZONE 'UTC')::date
    ORDER BY day
    LIMIT $3
),
gone AS (
    DELETE FROM counted_days USING old WHERE project_id = $1 AND counted_days.day = old.day RETURNING old.bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
