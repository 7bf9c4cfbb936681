-- $1 files, $2 hours, $3 partitions, $4 first offsets, $5 next offsets. Fewer rows come back than were given when two
-- files of an hour begin at the same offset.
INSERT INTO lake_file_ranges (file_id, hour, partition_id, first_offset, next_offset)
SELECT *
FROM unnest($1::bigint[], $2::timestamptz[], $3::smallint[], $4::bigint[], $5::bigint[])
ON CONFLICT DO NOTHING
RETURNING file_id
