-- What tells that the roll-ups of a range are still those that an answer was made of: the totals of its hours, and when
-- a day of it was counted again, which may have changed groups alone.
-- No row while a day of the range is marked, so that what is about to change is not kept.
SELECT ROW(
    count(*), coalesce(sum(count), 0), max(epoch), max(next_offset), max(created_at), count(*) FILTER (WHERE recomputed),
    (
        SELECT max(recomputed_at) FROM recomputed_days
        WHERE project_id = $1 AND day >= ($3 AT TIME ZONE 'UTC')::date AND day <= ($4 AT TIME ZONE 'UTC')::date
    )
)::text
FROM metric_aggregates
WHERE project_id = $1 AND metric_name = $2 AND time_granularity = 'hour' AND dimensions_hash = 0
    AND "timestamp" >= $3 AND "timestamp" < $4
HAVING NOT EXISTS (
    SELECT FROM late_days
    WHERE project_id = $1 AND day >= ($3 AT TIME ZONE 'UTC')::date AND day <= ($4 AT TIME ZONE 'UTC')::date
)
