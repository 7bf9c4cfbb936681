-- $1 projects, $2 days: what was marked again while it was recomputed waits anew; the rows are locked.
UPDATE late_days
SET first_marked = clock_timestamp()
FROM unnest($1::text[], $2::date[]) AS done (project_id, day)
WHERE late_days.project_id = done.project_id AND late_days.day = done.day
