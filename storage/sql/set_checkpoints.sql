-- $1 partitions, $2 offsets. Under a new epoch, so that nobody goes on from what was before; the others begin anew.
INSERT INTO checkpoints (sink, partition_id, epoch, next_offset)
SELECT 'lake', partition_id, 1, max(next_offset)
FROM (
    SELECT * FROM unnest($1::smallint[], $2::bigint[]) AS covered (partition_id, next_offset)
    UNION ALL
    SELECT partition_id, 0 FROM checkpoints WHERE sink = 'lake'
) AS made
GROUP BY partition_id
ORDER BY partition_id
ON CONFLICT (sink, partition_id) DO UPDATE
SET epoch = checkpoints.epoch + 1, next_offset = excluded.next_offset, moved_at = now()
