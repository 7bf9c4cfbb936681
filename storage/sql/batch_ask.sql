-- $1 kind, $2 day of a daily job, $3 and $4 days, $5 project, $6 metric, $7 whether nothing is to be written.
INSERT INTO batch_jobs (kind, daily, first_day, last_day, project_id, metric_name, dry_run)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (daily) DO NOTHING
RETURNING job_id
