-- $1 sink, $2 partition, $3 epoch. No row comes back when a newer epoch has it.
INSERT INTO checkpoints (sink, partition_id, epoch, next_offset)
VALUES ($1, $2, $3, 0)
ON CONFLICT (sink, partition_id) DO UPDATE
SET epoch = excluded.epoch
WHERE checkpoints.epoch <= excluded.epoch
RETURNING partition_id, epoch, next_offset
