-- $1 job, $2 piece, $3 turn; $4 why, $5 seconds until it comes again, $6 most turns.
UPDATE batch_pieces
SET state = CASE WHEN turn < $6 THEN 'open' ELSE 'failed' END,
    not_before = clock_timestamp() + $5::float8 * interval '1 second',
    error = $4
WHERE job_id = $1 AND piece = $2 AND turn = $3 AND state = 'running'
RETURNING piece
