-- $1 partition, $2 offset, $3 reason, $4 counts or NULL, $5 the record. Whether it was not there before.
INSERT INTO set_aside_records (partition_id, log_offset, reason, counts, raw)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (partition_id, log_offset) DO NOTHING
RETURNING true
