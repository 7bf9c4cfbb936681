-- $1 job, $2 piece, $3 turn; $4 events, $5 rows, $6 changed, $7 seconds, $8 whether somebody began later.
UPDATE batch_pieces
SET state = 'done', events = $4, rows = $5, changed = $6, seconds = seconds + $7, superseded = $8, error = NULL
WHERE job_id = $1 AND piece = $2 AND turn = $3 AND state = 'running'
RETURNING piece
