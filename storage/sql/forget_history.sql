-- $1 time. How many plans are forgotten.
WITH exports AS (
    DELETE FROM lake_exports WHERE exported_at < $1
),
plans AS (
    DELETE FROM lake_plans WHERE state <> 'open' AND ended_at < $1 RETURNING plan_id
)
SELECT count(*) FROM plans
