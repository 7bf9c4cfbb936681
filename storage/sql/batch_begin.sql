-- $1 job, $2 days left out. A row comes back if it has waited.
UPDATE batch_jobs SET state = 'running', started_at = now(), days_open = $2
WHERE job_id = $1 AND state = 'waiting'
RETURNING job_id
