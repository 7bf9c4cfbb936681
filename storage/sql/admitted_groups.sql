-- Keys without dimensions: $1 projects, $2 minutes (s since the epoch), $3 metrics, $4 event types, $5 shapes, $6 late.
-- The groups that have a record of their own there, or the one of __other__; each key is a stretch of the primary key.
SELECT wanted.number, kept.dimensions_hash
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::boolean[])
    WITH ORDINALITY AS wanted (project_id, minute, metric_name, event_type, shape, late, number)
JOIN aggregated_events AS kept
    ON kept.project_id = wanted.project_id
    AND kept.minute = to_timestamp(wanted.minute)
    AND kept.metric_name = wanted.metric_name
    AND kept.event_type = wanted.event_type
    AND kept.shape = wanted.shape
    AND kept.late = wanted.late
