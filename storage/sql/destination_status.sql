-- $1 destination. Whether a file's offsets are delivered is told by its ranges; whether events of the destination are
-- among them by its projects.
SELECT
    destination.created_at,
    destination.fresh_at,
    destination.delivered_at,
    destination.failing_since,
    destination.last_error,
    destination.files,
    destination.rows,
    destination.bytes,
    (
        SELECT count(DISTINCT held.file_id)
        FROM lake_destination_stretches AS stretch
        JOIN lake_file_ranges AS held
            ON held.partition_id = stretch.partition_id AND held.next_offset > stretch.next_offset
            AND (stretch.until_offset IS NULL OR held.first_offset < stretch.until_offset)
        WHERE stretch.destination_id = destination.destination_id
            AND (
                stretch.project_id = ''
                OR EXISTS (
                    SELECT FROM lake_file_projects
                    WHERE project_id = stretch.project_id AND hour = held.hour AND file_id = held.file_id
                )
            )
    ) AS pending_files,
    coalesce(delivery.delivery_id, 0) AS open_delivery
FROM lake_destinations AS destination
LEFT JOIN lake_deliveries AS delivery USING (destination_id)
WHERE destination.destination_id = $1
