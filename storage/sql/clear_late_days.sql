-- $1 projects, $2 days, $3 the versions that were read; the rows are locked.
DELETE FROM late_days
USING unnest($1::text[], $2::date[], $3::bigint[]) AS done (project_id, day, version)
WHERE late_days.project_id = done.project_id AND late_days.day = done.day AND late_days.version = done.version
