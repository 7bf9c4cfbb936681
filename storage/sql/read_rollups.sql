-- $1 project, $2 metric, $3 granularity, $4 and $5 bounds of the start, $6 whether the groups or the total.
-- One row a group, its columns packed: PostgreSQL's binary numbers one after the other (timestamps are microseconds
-- since 2000), sums as text with spaces. To send and decode each row by itself would take ten times as long.
SELECT
    any_value(dimension_names) AS names,
    any_value(dimensions)::text AS dimensions,
    string_agg(timestamptz_send("timestamp"), '') AS starts,
    string_agg(int8send(count), '') AS counts,
    CASE WHEN count(sum) > 0 THEN string_agg(coalesce(sum::text, '0'), ' ') END AS sums,
    CASE WHEN count(minimum) > 0 THEN string_agg(float8send(coalesce(minimum, 'NaN')), '') END AS minima,
    CASE WHEN count(maximum) > 0 THEN string_agg(float8send(coalesce(maximum, 'NaN')), '') END AS maxima,
    CASE WHEN count(sketches) > 0 THEN array_agg(sketches) END AS sketches
FROM metric_aggregates
WHERE project_id = $1
    AND metric_name = $2
    AND time_granularity = $3
    AND "timestamp" >= $4
    AND "timestamp" < $5
    AND CASE WHEN $6 THEN dimensions_hash <> 0 ELSE dimensions_hash = 0 END
GROUP BY dimensions_hash
