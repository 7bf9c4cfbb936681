-- $1 projects and $2 days of one length, $3 ticket. A row for each day that nobody has begun to count later; locked, so
-- that nobody does until these are written.
SELECT
FROM recomputed_days AS kept
JOIN unnest($1::text[], $2::date[]) AS wanted (project_id, day) USING (project_id, day)
WHERE kept.ticket = $3
ORDER BY kept.project_id, kept.day
FOR UPDATE OF kept
