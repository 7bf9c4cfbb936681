-- $1 project, $2 and $3 bounds of the time or NULL, $4 the lake's checkpoint, $5 earliest time of storing.
SELECT
    project_id, event_id, event_type, user_id, anonymous_id, session_id, site_id, "timestamp", received_at, properties,
    context, log_offset
FROM events_log
WHERE project_id = $1
    AND ($2::timestamptz IS NULL OR "timestamp" >= $2::timestamptz)
    AND ($3::timestamptz IS NULL OR "timestamp" < $3::timestamptz)
    AND log_offset >= $4::bigint
    AND created_at >= $5::timestamptz
