-- $1 project or NULL, $2 and $3 days or NULL.
SELECT project_id, day, files, rows, bytes
FROM lake_volumes
WHERE ($1::text IS NULL OR project_id = $1)
    AND ($2::date IS NULL OR day >= $2::date)
    AND ($3::date IS NULL OR day < $3::date)
ORDER BY project_id, day
