-- $1 partitions, $2 first offsets, $3 next offsets, of gaps that a write steps over.
UPDATE set_aside_records AS record
SET stepped_over_at = now()
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS gap (partition_id, first_offset, next_offset)
WHERE record.partition_id = gap.partition_id
    AND record.log_offset >= gap.first_offset
    AND record.log_offset < gap.next_offset
    AND record.stepped_over_at IS NULL
