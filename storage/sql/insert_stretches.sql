-- $1 destination, $2 projects, $3 partitions, $4 first offsets. One that has ended there goes on.
INSERT INTO lake_destination_stretches (destination_id, project_id, partition_id, first_offset, next_offset)
SELECT $1, project_id, partition_id, first_offset, first_offset
FROM unnest($2::text[], $3::smallint[], $4::bigint[]) AS begun (project_id, partition_id, first_offset)
ON CONFLICT (destination_id, project_id, partition_id, first_offset) DO UPDATE SET until_offset = NULL
