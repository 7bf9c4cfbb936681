-- $1 partitions. In their order, so that no two owners wait for each other.
INSERT INTO checkpoints (sink, partition_id, epoch, next_offset)
SELECT 'lake', claimed.partition_id, 1, 0
FROM unnest($1::smallint[]) AS claimed (partition_id)
ORDER BY claimed.partition_id
ON CONFLICT (sink, partition_id) DO UPDATE SET epoch = checkpoints.epoch + 1
RETURNING partition_id, epoch, next_offset
