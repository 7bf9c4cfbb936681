-- $1 partition, $2 epoch, $3 next_offset. No row when it was raised further. Waits for those who write.
INSERT INTO rollup_floors AS floor (partition_id, epoch, next_offset)
VALUES ($1, $2, $3)
ON CONFLICT (partition_id) DO UPDATE
SET epoch = excluded.epoch, next_offset = excluded.next_offset
WHERE (floor.epoch, floor.next_offset) <= (excluded.epoch, excluded.next_offset)
RETURNING partition_id
