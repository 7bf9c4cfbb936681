-- $1 project or NULL, $2 and $3 days or NULL.
SELECT
    project_id,
    (hour AT TIME ZONE 'UTC')::date AS day,
    count(*) AS files,
    sum(rows)::bigint AS rows,
    sum(bytes)::bigint AS bytes
FROM lake_file_projects
WHERE ($1::text IS NULL OR project_id = $1)
    AND ($2::date IS NULL OR hour >= $2::date::timestamp AT TIME ZONE 'UTC')
    AND ($3::date IS NULL OR hour < $3::date::timestamp AT TIME ZONE 'UTC')
GROUP BY project_id, day
ORDER BY project_id, day
