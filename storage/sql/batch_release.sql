-- $1 job, $2 worker or NULL for all, $3 most turns. What died on its way that often does not come again.
UPDATE batch_pieces
SET state = CASE WHEN turn < $3 THEN 'open' ELSE 'failed' END, error = coalesce(error, 'its worker has ended')
WHERE job_id = $1 AND state = 'running' AND ($2::text IS NULL OR worker = $2)
RETURNING piece
