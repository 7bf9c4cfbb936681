-- $1 kind, $2 partitions, $3 their first offsets, $4 their next ones, $5 files to be retired.
INSERT INTO lake_plans (kind, partition_ids, first_offsets, next_offsets, file_ids)
VALUES ($1, $2, $3, $4, $5)
RETURNING plan_id, partition_ids, first_offsets, next_offsets, created_at
