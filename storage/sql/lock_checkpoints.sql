-- $1 sink, $2 partitions. In the order of the partitions, so that no two writers wait for each other.
SELECT partition_id, epoch, next_offset
FROM checkpoints
WHERE sink = $1 AND partition_id = ANY($2::smallint[])
ORDER BY partition_id
FOR NO KEY UPDATE
