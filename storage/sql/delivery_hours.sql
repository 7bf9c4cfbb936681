-- $1 delivery.
SELECT DISTINCT held.hour
FROM lake_deliveries AS delivery
CROSS JOIN LATERAL unnest(
    delivery.project_ids, delivery.partition_ids, delivery.first_offsets, delivery.next_offsets
) AS stretch (project_id, partition_id, first_offset, next_offset)
JOIN lake_file_ranges AS held
    ON held.partition_id = stretch.partition_id AND held.next_offset > stretch.first_offset
    AND held.first_offset < stretch.next_offset
WHERE delivery.delivery_id = $1
    AND (
        stretch.project_id = ''
        OR EXISTS (
            SELECT FROM lake_file_projects
            WHERE project_id = stretch.project_id AND hour = held.hour AND file_id = held.file_id
        )
    )
    AND NOT EXISTS (
        SELECT FROM lake_delivery_hours AS done WHERE done.delivery_id = $1 AND done.hour = held.hour
    )
ORDER BY held.hour
