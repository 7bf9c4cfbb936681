-- The projects that have rows of the day: from each to the next by the first entry of the index behind it.
WITH RECURSIVE found AS (
    SELECT min(project_id) AS project_id FROM events_log_day
    UNION ALL
    SELECT (SELECT min(project_id) FROM events_log_day WHERE project_id > found.project_id)
    FROM found
    WHERE found.project_id IS NOT NULL
)
SELECT project_id FROM found WHERE project_id IS NOT NULL
