-- $1 projects, $2 and $3 bounds of the minutes.
SELECT
    project_id, extract(epoch FROM minute)::bigint AS minute, metric_name, event_type, shape, late, dimensions,
    dimension_names, partition_id, events, first_offset, next_offset,
    (extract(epoch FROM received_at) * 1000)::bigint AS received_ms, state
FROM aggregated_events
WHERE project_id = ANY($1::text[]) AND minute >= $2::timestamptz AND minute < $3::timestamptz
