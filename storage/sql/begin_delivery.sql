-- $1 destination, $2 projects, $3 partitions, $4 first offsets, $5 next offsets.
INSERT INTO lake_deliveries (destination_id, project_ids, partition_ids, first_offsets, next_offsets)
VALUES ($1, $2, $3, $4, $5)
RETURNING delivery_id, destination_id, created_at, project_ids, partition_ids, first_offsets, next_offsets
