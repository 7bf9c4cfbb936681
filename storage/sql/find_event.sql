-- $1 project, $2 event id. OFFSET 0 keeps the project from choosing the index.
SELECT event_json, partition_id::integer, log_offset, received_at, created_at, "timestamp"
FROM (SELECT * FROM events_log WHERE event_id = $2 OFFSET 0) AS found
WHERE project_id = $1
ORDER BY created_at DESC
LIMIT 1
