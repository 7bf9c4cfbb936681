-- The series of roll-ups, from each to the next by the first entry of the primary key behind it.
WITH RECURSIVE found AS (
    (SELECT project_id, metric_name, time_granularity FROM metric_aggregates
    ORDER BY project_id, metric_name, time_granularity LIMIT 1)
    UNION ALL
    SELECT following.*
    FROM found CROSS JOIN LATERAL (
        SELECT project_id, metric_name, time_granularity FROM metric_aggregates AS each
        WHERE (each.project_id, each.metric_name, each.time_granularity)
            > (found.project_id, found.metric_name, found.time_granularity)
        ORDER BY project_id, metric_name, time_granularity LIMIT 1
    ) AS following
)
SELECT project_id, metric_name, time_granularity FROM found
