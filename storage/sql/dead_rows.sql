-- $1 partitions, $2 first offsets, $3 next offsets.
SELECT dead.partition_id, dead.log_offset, dead.row_number, dead.project_id, dead.event_id
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS part (partition_id, first_offset, next_offset)
JOIN dead_letters AS dead
    ON dead.partition_id = part.partition_id
    AND dead.log_offset >= part.first_offset AND dead.log_offset < part.next_offset
ORDER BY dead.partition_id, dead.log_offset, dead.row_number
