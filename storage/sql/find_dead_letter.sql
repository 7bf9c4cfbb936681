-- $1 project, $2 event id
SELECT partition_id, log_offset, row_number, received_at, created_at, error_code, message
FROM dead_letters
WHERE project_id = $1 AND event_id = $2
ORDER BY created_at DESC
LIMIT 1
