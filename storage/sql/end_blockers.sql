-- $1 process id of the claiming session, $2 sink, $3 partition, $4 epoch of the claim.
-- Ends who holds what the claim waits for, unless a newer epoch is there already: then the claim is the stale one.
SELECT pid, pg_terminate_backend(pid) AS ended
FROM unnest(pg_blocking_pids($1)) AS blocker (pid)
WHERE pid <> 0 AND NOT EXISTS (SELECT FROM checkpoints WHERE sink = $2 AND partition_id = $3 AND epoch > $4)
