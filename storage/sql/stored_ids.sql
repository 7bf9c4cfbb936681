-- $1 projects, $2 and $3 bounds of the event's time, $4 and $5 bounds of the offset in the log.
SELECT project_id, event_id, log_offset
FROM events_log
WHERE project_id = ANY($1::text[])
    AND "timestamp" >= $2::timestamptz
    AND "timestamp" < $3::timestamptz
    AND log_offset >= $4::bigint
    AND log_offset < $5::bigint
