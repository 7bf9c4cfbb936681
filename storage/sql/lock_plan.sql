-- $1 plan.
SELECT kind, state, partition_ids, first_offsets, next_offsets, file_ids
FROM lake_plans
WHERE plan_id = $1
FOR UPDATE
