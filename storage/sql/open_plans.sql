-- $1 partitions.
SELECT plan_id, partition_ids, first_offsets, next_offsets, created_at
FROM lake_plans
WHERE state = 'open' AND kind = 'export' AND partition_ids && $1::smallint[]
ORDER BY plan_id
