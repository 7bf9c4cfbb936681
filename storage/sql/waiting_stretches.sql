-- $1 destination. What the lake has and the destination has not.
SELECT
    stretch.project_id,
    stretch.partition_id,
    stretch.next_offset AS first_offset,
    least(stretch.until_offset, lake.next_offset) AS next_offset
FROM lake_destination_stretches AS stretch
JOIN checkpoints AS lake ON lake.sink = 'lake' AND lake.partition_id = stretch.partition_id
WHERE stretch.destination_id = $1 AND stretch.next_offset < least(stretch.until_offset, lake.next_offset)
ORDER BY stretch.partition_id, stretch.project_id, stretch.next_offset
