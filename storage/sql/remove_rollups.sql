-- $1 project, $2 metrics, $3 and $4 bounds of minutes and hours, but for those that are to stay: $5 metrics, $6
-- granularities, $7 starts (seconds since the epoch), $8 hashes. $9 epoch and $10 next_offset: what was counted further
-- stays, and what was recomputed.
DELETE FROM metric_aggregates AS kept
WHERE kept.project_id = $1
    AND kept.metric_name = ANY($2::text[])
    AND kept.time_granularity IN ('minute', 'hour')
    AND kept."timestamp" >= $3
    AND kept."timestamp" < $4
    AND NOT kept.recomputed
    AND (kept.epoch, kept.next_offset) <= ($9::bigint, $10::bigint)
    AND NOT EXISTS (
        SELECT
        FROM unnest($5::text[], $6::text[], $7::bigint[], $8::bigint[]) AS counted (
            metric_name, time_granularity, start, dimensions_hash
        )
        WHERE counted.metric_name = kept.metric_name
            AND counted.time_granularity = kept.time_granularity
            AND to_timestamp(counted.start) = kept."timestamp"
            AND counted.dimensions_hash = kept.dimensions_hash
    )
