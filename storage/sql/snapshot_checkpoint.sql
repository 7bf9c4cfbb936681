-- $1 partitions. Of each the lake's checkpoint, the event store's, and since when what lies between may have been stored.
SELECT
    wanted.partition_id,
    coalesce(max(c.epoch) FILTER (WHERE c.sink = 'lake'), 0) AS epoch,
    coalesce(max(c.next_offset) FILTER (WHERE c.sink = 'lake'), 0) AS next_offset,
    coalesce(max(c.next_offset) FILTER (WHERE c.sink = 'event_store'), 0) AS stored_below,
    coalesce(max(t.since), to_timestamp(0)) AS since
FROM unnest($1::smallint[]) AS wanted (partition_id)
LEFT JOIN checkpoints AS c ON c.partition_id = wanted.partition_id AND c.sink IN ('lake', 'event_store')
LEFT JOIN lake_tails AS t ON t.partition_id = wanted.partition_id
GROUP BY wanted.partition_id
ORDER BY wanted.partition_id
