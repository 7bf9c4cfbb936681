-- $1 plan, $2 partitions, $3 first offsets, $4 next offsets.
INSERT INTO lake_exports (plan_id, partition_id, first_offset, next_offset)
SELECT $1, partition_id, first_offset, next_offset
FROM unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS exported (partition_id, first_offset, next_offset)
