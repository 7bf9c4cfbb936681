-- $1 project. The UTC days that hold events of it, stored, aggregated or in files of the lake: of the first two from
-- each to the next, by the first entry of the index behind it.
WITH RECURSIVE found AS (
    SELECT min("timestamp") AS first FROM events_log WHERE project_id = $1
    UNION ALL
    SELECT (
        SELECT min("timestamp")
        FROM events_log
        WHERE project_id = $1 AND "timestamp" >= date_trunc('day', found.first, 'UTC') + interval '1 day'
    )
    FROM found
    WHERE found.first IS NOT NULL
),
aggregated AS (
    SELECT min(minute) AS first FROM aggregated_events WHERE project_id = $1
    UNION ALL
    SELECT (
        SELECT min(minute)
        FROM aggregated_events
        WHERE project_id = $1 AND minute >= date_trunc('day', aggregated.first, 'UTC') + interval '1 day'
    )
    FROM aggregated
    WHERE aggregated.first IS NOT NULL
)
SELECT (first AT TIME ZONE 'UTC')::date AS day
FROM (
    SELECT first FROM found
    UNION ALL
    SELECT first FROM aggregated
    UNION ALL
    SELECT hour FROM lake_file_projects WHERE project_id = $1
) AS days
WHERE first IS NOT NULL
GROUP BY day
ORDER BY day
