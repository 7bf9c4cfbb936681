-- Columns of keys: $1 projects, $2 minutes (s since the epoch), $3 metrics, $4 event types, $5 shapes, $6 late,
-- $7 hashes of dimensions. The records that are there, locked in one order, so that no two writers wait for each other.
SELECT
    wanted.number, kept.partition_id, kept.events, kept.first_offset, kept.next_offset,
    (extract(epoch FROM kept.received_at) * 1000)::bigint AS received_ms, kept.state
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::boolean[], $7::bigint[])
    WITH ORDINALITY AS wanted (project_id, minute, metric_name, event_type, shape, late, dimensions_hash, number)
JOIN aggregated_events AS kept
    ON kept.project_id = wanted.project_id
    AND kept.minute = to_timestamp(wanted.minute)
    AND kept.metric_name = wanted.metric_name
    AND kept.event_type = wanted.event_type
    AND kept.shape = wanted.shape
    AND kept.late = wanted.late
    AND kept.dimensions_hash = wanted.dimensions_hash
ORDER BY
    kept.project_id, kept.minute, kept.metric_name, kept.event_type, kept.shape, kept.late, kept.dimensions_hash
FOR UPDATE OF kept
