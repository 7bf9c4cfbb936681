-- Marks: $1 partitions, $2 offsets, $3 times. Those above the lake's checkpoint say nothing of what is below them.
INSERT INTO lake_tails (partition_id, since)
SELECT checkpoints.partition_id, max(mark.since)
FROM unnest($1::smallint[], $2::bigint[], $3::timestamptz[]) AS mark (partition_id, next_offset, since)
JOIN checkpoints
    ON checkpoints.sink = 'lake' AND checkpoints.partition_id = mark.partition_id
    AND checkpoints.next_offset >= mark.next_offset
GROUP BY checkpoints.partition_id
ORDER BY checkpoints.partition_id
ON CONFLICT (partition_id) DO UPDATE
SET since = excluded.since
WHERE lake_tails.since < excluded.since
