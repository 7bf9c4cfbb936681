-- $1 projects and $2 days of one length, $3 ticket. A later one stays.
INSERT INTO recomputed_days AS kept (project_id, day, ticket, recomputed_at)
SELECT project_id, day, $3, now()
FROM unnest($1::text[], $2::date[]) AS wanted (project_id, day)
ORDER BY project_id COLLATE "C", day
ON CONFLICT (project_id, day) DO UPDATE
SET ticket = greatest(kept.ticket, excluded.ticket), recomputed_at = excluded.recomputed_at
