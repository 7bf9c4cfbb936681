-- $1 partition, $2 and $3 offsets, $4 and $5 when they were stored.
SELECT
    project_id, event_id, event_type, user_id, anonymous_id, session_id, site_id, "timestamp", received_at, properties,
    context, log_offset
FROM events_log
WHERE partition_id = $1::smallint
    AND log_offset >= $2::bigint
    AND log_offset < $3::bigint
    AND created_at >= $4::timestamptz
    AND created_at <= $5::timestamptz
