SELECT stored.partition_id, coalesce(lake.next_offset, 0) AS exported_below, stored.next_offset AS stored_below, since
FROM checkpoints AS stored
LEFT JOIN checkpoints AS lake ON lake.sink = 'lake' AND lake.partition_id = stored.partition_id
LEFT JOIN lake_tails ON lake_tails.partition_id = stored.partition_id
WHERE stored.sink = 'event_store'
ORDER BY stored.partition_id
