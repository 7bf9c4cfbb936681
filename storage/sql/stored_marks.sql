-- $1 partitions, $2 seconds that a write of the event store may take, $3 seconds that clocks may differ.
-- Writes of a partition follow one another, so that none begins before the one that moved the checkpoint; and what is
-- under way now has begun within its deadline. created_at is the beginning of the write.
SELECT
    partition_id,
    next_offset,
    greatest(moved_at, now() - make_interval(secs => $2)) - make_interval(secs => $3) AS since
FROM checkpoints
WHERE sink = 'event_store' AND partition_id = ANY($1::smallint[])
