-- $1 partitions, $2 offsets. What is in files was stored once, also when this database knows nothing of it: offsets are
-- never given to other events.
INSERT INTO checkpoints (sink, partition_id, epoch, next_offset)
SELECT 'event_store', partition_id, 0, next_offset
FROM unnest($1::smallint[], $2::bigint[]) AS covered (partition_id, next_offset)
ORDER BY partition_id
ON CONFLICT (sink, partition_id) DO UPDATE
SET next_offset = excluded.next_offset, moved_at = now()
WHERE checkpoints.next_offset < excluded.next_offset
