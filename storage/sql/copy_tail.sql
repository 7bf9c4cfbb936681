-- $1 projects, $2 and $3 bounds of the time or NULL, $4 the lake's checkpoint of each project's partition, $5 the
-- earliest time of storing of each, $6 the earliest of these, by which days are left out.
SELECT
    project_id, event_id, event_type, user_id, anonymous_id, session_id, site_id, "timestamp", received_at, properties,
    context, log_offset
FROM unnest($1::text[], $4::bigint[], $5::timestamptz[]) AS wanted (project, next_offset, since)
JOIN events_log
    ON project_id = wanted.project AND log_offset >= wanted.next_offset AND created_at >= wanted.since
WHERE created_at >= $6::timestamptz
    AND ($2::timestamptz IS NULL OR "timestamp" >= $2::timestamptz)
    AND ($3::timestamptz IS NULL OR "timestamp" < $3::timestamptz)
