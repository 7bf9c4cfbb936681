-- $1 projects, $2 days. In the order of mark_late_days.sql; a later statement sees the versions as they are then.
SELECT
FROM late_days
JOIN unnest($1::text[], $2::date[]) AS wanted (project_id, day) USING (project_id, day)
ORDER BY late_days.project_id, late_days.day
FOR UPDATE OF late_days
