-- $1 projects, $2 and $3 bounds: minutes and hours that begin in [$2, $3), days that lie in it, but for those that are
-- to stay: $4 their projects, $5 metrics, $6 granularities, $7 starts (seconds since the epoch), $8 hashes. Of $9
-- granularities.
DELETE FROM metric_aggregates AS kept
WHERE kept.project_id = ANY($1::text[])
    AND kept.time_granularity = ANY($9::text[])
    AND (
        (kept.time_granularity IN ('minute', 'hour') AND kept."timestamp" >= $2 AND kept."timestamp" < $3)
        OR (
            kept.time_granularity = 'day'
            AND kept."timestamp" >= $2
            AND kept."timestamp" <= $3 - interval '1 day'
        )
    )
    AND NOT EXISTS (
        SELECT
        FROM unnest($4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[]) AS rolled (
            project_id, metric_name, time_granularity, start, dimensions_hash
        )
        WHERE rolled.project_id = kept.project_id
            AND rolled.metric_name = kept.metric_name
            AND rolled.time_granularity = kept.time_granularity
            AND to_timestamp(rolled.start) = kept."timestamp"
            AND rolled.dimensions_hash = kept.dimensions_hash
    )
