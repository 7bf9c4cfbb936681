-- $1 sink, $2 partitions, $3 their next offsets; the rows are locked and were compared.
UPDATE checkpoints
SET next_offset = moved.next_offset, moved_at = now()
FROM unnest($2::smallint[], $3::bigint[]) AS moved (partition_id, next_offset)
WHERE checkpoints.sink = $1 AND checkpoints.partition_id = moved.partition_id
