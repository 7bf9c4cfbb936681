-- $1 job. Once all of its pieces are done or failed.
UPDATE batch_jobs
SET state = CASE
        WHEN EXISTS (SELECT FROM batch_pieces WHERE job_id = $1 AND state = 'failed') THEN 'incomplete'
        ELSE 'done'
    END,
    ended_at = now()
WHERE job_id = $1 AND state = 'running'
    AND NOT EXISTS (SELECT FROM batch_pieces WHERE job_id = $1 AND state IN ('open', 'running'))
