-- The projects of which it is noted with which metrics days were counted, from each to the next by the primary key.
WITH RECURSIVE found AS (
    SELECT min(project_id) AS project_id FROM counted_days
    UNION ALL
    SELECT (SELECT min(project_id) FROM counted_days WHERE project_id > found.project_id)
    FROM found
    WHERE found.project_id IS NOT NULL
)
SELECT project_id FROM found WHERE project_id IS NOT NULL
