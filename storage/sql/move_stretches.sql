-- $1 destination, $2 projects, $3 partitions, $4 first offsets, $5 next offsets.
UPDATE lake_destination_stretches AS stretch
SET next_offset = done.next_offset
FROM unnest($2::text[], $3::smallint[], $4::bigint[], $5::bigint[])
    AS done (project_id, partition_id, first_offset, next_offset)
WHERE stretch.destination_id = $1 AND stretch.project_id = done.project_id
    AND stretch.partition_id = done.partition_id AND stretch.next_offset = done.first_offset
    AND (stretch.until_offset IS NULL OR stretch.until_offset > done.first_offset)
