-- $1 project, $2 to $4 limits. No row comes back when there is no such project.
INSERT INTO retention_limits (project_id, raw_days, lake_days, rollup_days)
SELECT project_id, $2, $3, $4 FROM projects WHERE project_id = $1
ON CONFLICT (project_id) DO UPDATE
SET raw_days = excluded.raw_days, lake_days = excluded.lake_days, rollup_days = excluded.rollup_days, changed_at = now()
RETURNING project_id
