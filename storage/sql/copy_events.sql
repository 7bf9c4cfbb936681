-- $1 projects, $2 and $3 bounds of the time, $4 earliest time of storing, $5 bound of the log offset or NULL.
SELECT
    project_id, event_id, event_type, user_id, anonymous_id, session_id, site_id, "timestamp", received_at, properties,
    context
FROM events_log
WHERE project_id = ANY($1::text[])
    AND "timestamp" >= $2::timestamptz
    AND "timestamp" < $3::timestamptz
    AND created_at >= $4::timestamptz
    AND ($5::bigint IS NULL OR log_offset < $5::bigint)
