-- $1 delivery, $2 hour.
SELECT file.key, file.bytes, file.checksum
FROM lake_files AS file
WHERE file.file_id IN (
    SELECT held.file_id
    FROM lake_deliveries AS delivery
    CROSS JOIN LATERAL unnest(
        delivery.project_ids, delivery.partition_ids, delivery.first_offsets, delivery.next_offsets
    ) AS stretch (project_id, partition_id, first_offset, next_offset)
    JOIN lake_file_ranges AS held
        ON held.partition_id = stretch.partition_id AND held.hour = $2 AND held.next_offset > stretch.first_offset
        AND held.first_offset < stretch.next_offset
    WHERE delivery.delivery_id = $1
        AND (
            stretch.project_id = ''
            OR EXISTS (
                SELECT FROM lake_file_projects
                WHERE project_id = stretch.project_id AND hour = held.hour AND file_id = held.file_id
            )
        )
)
ORDER BY file.file_id
