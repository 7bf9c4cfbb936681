-- $1 partition. The lake's checkpoint, the event store's, and since when what lies between may have been stored.
SELECT
    coalesce(max(epoch) FILTER (WHERE sink = 'lake'), 0) AS epoch,
    coalesce(max(next_offset) FILTER (WHERE sink = 'lake'), 0) AS next_offset,
    coalesce(max(next_offset) FILTER (WHERE sink = 'event_store'), 0) AS stored_below,
    coalesce((SELECT since FROM lake_tails WHERE partition_id = $1), to_timestamp(0)) AS since
FROM checkpoints
WHERE partition_id = $1 AND sink IN ('lake', 'event_store')
