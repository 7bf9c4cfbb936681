-- $1 projects, $2 and $3 bounds: minutes and hours that begin in [$2, $3), days that lie in it.
DELETE FROM metric_aggregates
WHERE project_id = ANY($1::text[])
    AND (
        (time_granularity IN ('minute', 'hour') AND "timestamp" >= $2 AND "timestamp" < $3)
        OR (time_granularity = 'day' AND "timestamp" >= $2 AND "timestamp" <= $3 - interval '1 day')
    )
