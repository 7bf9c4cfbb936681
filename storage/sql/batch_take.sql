-- $1 job, $2 worker. The next piece that is due, under a new turn; workers do not wait for one another.
UPDATE batch_pieces AS taken
SET state = 'running', turn = taken.turn + 1, worker = $2
FROM (
    SELECT job_id, piece
    FROM batch_pieces
    WHERE job_id = $1 AND state = 'open' AND not_before <= clock_timestamp()
    ORDER BY piece
    LIMIT 1
    FOR UPDATE SKIP LOCKED
) AS next
JOIN batch_jobs AS job ON job.job_id = next.job_id
WHERE taken.job_id = next.job_id AND taken.piece = next.piece
RETURNING taken.piece, taken.turn, taken.first_day, taken.last_day, taken.projects, job.dry_run
