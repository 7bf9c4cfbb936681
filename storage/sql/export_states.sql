-- $1 partition or NULL for all.
SELECT
    stored.partition_id,
    coalesce(lake.next_offset, 0) AS exported_below,
    stored.next_offset AS stored_below,
    lake_tails.since,
    (
        SELECT exported_at FROM lake_exports WHERE lake_exports.partition_id = stored.partition_id
        ORDER BY lake_exports.next_offset DESC LIMIT 1
    ) AS last_export_at
FROM checkpoints AS stored
LEFT JOIN checkpoints AS lake ON lake.sink = 'lake' AND lake.partition_id = stored.partition_id
LEFT JOIN lake_tails ON lake_tails.partition_id = stored.partition_id
WHERE stored.sink = 'event_store' AND ($1::smallint IS NULL OR stored.partition_id = $1::smallint)
ORDER BY stored.partition_id
