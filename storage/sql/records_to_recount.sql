-- $1 partitions. What was stepped over and may be in windows.
SELECT partition_id, log_offset, reason, counts, length(raw), set_aside_at, stepped_over_at
FROM set_aside_records
WHERE partition_id = ANY($1::smallint[]) AND recounted_at IS NULL AND stepped_over_at IS NOT NULL
ORDER BY partition_id, log_offset
