-- $1 and $2 first and last day or NULL, $3 project or NULL. Days that hold events, in files or in roll-ups of the metric
-- that counts all of them, or are marked.
SELECT found.project_id, found.day, coalesce(counted.built, '') AS built
FROM (
    SELECT project_id, (hour AT TIME ZONE 'UTC')::date AS day
    FROM lake_file_projects
    WHERE ($3::text IS NULL OR project_id = $3)
        AND ($1::date IS NULL OR hour >= $1::timestamp AT TIME ZONE 'UTC')
        AND ($2::date IS NULL OR hour < ($2 + 1)::timestamp AT TIME ZONE 'UTC')
    UNION
    SELECT project_id, ("timestamp" AT TIME ZONE 'UTC')::date AS day
    FROM metric_aggregates
    WHERE ($3::text IS NULL OR project_id = $3) AND metric_name = 'events' AND time_granularity IN ('hour', 'day')
        AND dimensions_hash = 0
        AND ($1::date IS NULL OR "timestamp" >= $1::timestamp AT TIME ZONE 'UTC')
        AND ($2::date IS NULL OR "timestamp" < ($2 + 1)::timestamp AT TIME ZONE 'UTC')
    UNION
    SELECT project_id, day
    FROM late_days
    WHERE ($3::text IS NULL OR project_id = $3) AND ($1::date IS NULL OR day >= $1) AND ($2::date IS NULL OR day <= $2)
) AS found
LEFT JOIN counted_days AS counted USING (project_id, day)
ORDER BY found.day, found.project_id COLLATE "C"
