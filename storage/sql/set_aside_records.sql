-- What was set aside, oldest first; the record itself is left out.
SELECT partition_id, log_offset, reason, counts, length(raw), set_aside_at, stepped_over_at
FROM set_aside_records
ORDER BY set_aside_at, partition_id, log_offset
