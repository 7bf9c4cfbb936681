-- $1 projects and $2 days of one length, $3 epoch. Returns a row for each day that no later epoch has recomputed.
INSERT INTO recomputed_days AS kept (project_id, day, epoch, recomputed_at)
SELECT project_id, day, $3, now()
FROM unnest($1::text[], $2::date[]) AS wanted (project_id, day)
ORDER BY project_id COLLATE "C", day
ON CONFLICT (project_id, day) DO UPDATE
SET epoch = excluded.epoch, recomputed_at = excluded.recomputed_at
WHERE kept.epoch <= excluded.epoch
RETURNING project_id
