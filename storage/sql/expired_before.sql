-- $1 projects. Events of some of them that were stored before this may be gone; NULL when all are there.
SELECT max(stored_before) FROM expired_events WHERE project_id = ANY($1::text[])
