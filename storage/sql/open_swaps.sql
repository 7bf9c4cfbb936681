SELECT plan_id, kind, file_ids, created_at
FROM lake_plans
WHERE state = 'open' AND kind <> 'export'
ORDER BY plan_id
