-- $1 project, $2 metric, $3 granularity, $4 and $5 bounds of the start, $6 whether the groups or the total, $7 to $10
-- whether sums, minima, maxima and sketches are wanted: a column of 36,000 rows takes some milliseconds.
-- One row a group, its columns packed: PostgreSQL's binary numbers one after the other (timestamps are microseconds
-- since 2000), sums as text with spaces. To send and decode each row by itself would take ten times as long.
SELECT
    any_value(dimension_names) AS names,
    any_value(dimensions)::text AS dimensions,
    string_agg(timestamptz_send("timestamp"), '') AS starts,
    string_agg(int8send(count), '') AS counts,
    string_agg(coalesce(sum::text, '0'), ' ') FILTER (WHERE $7) AS sums,
    string_agg(float8send(coalesce(minimum, 'NaN')), '') FILTER (WHERE $8) AS minima,
    string_agg(float8send(coalesce(maximum, 'NaN')), '') FILTER (WHERE $9) AS maxima,
    array_agg(sketches) FILTER (WHERE $10) AS sketches
FROM metric_aggregates
WHERE project_id = $1
    AND metric_name = $2
    AND time_granularity = $3
    AND "timestamp" >= $4
    AND "timestamp" < $5
    -- The total is 0; bounds let the index tell it, without a look at the rows of the groups.
    AND dimensions_hash >= CASE WHEN $6 THEN -9223372036854775808 ELSE 0 END
    AND dimensions_hash <= CASE WHEN $6 THEN 9223372036854775807 ELSE 0 END
    AND (dimensions_hash <> 0) = $6
GROUP BY dimensions_hash
