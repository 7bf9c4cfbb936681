-- $1 project, $2 metric, $3 granularity, $4 and $5 bounds of the start, $6 whether the groups or the total, $7 how many
-- rows at most, or NULL. In the places of wanted_columns and packed_columns stand those of storage/postgres_rollups.py
-- that are wanted: each takes some ms of 36,000 rows.
-- One row a group, its columns packed: PostgreSQL's binary numbers one after the other (timestamps are microseconds
-- since 2000), sums as text with spaces. To send and decode each row by itself would take ten times as long. What is the
-- same in all rows of a group is taken from one of them: to reach it in each, behind all other columns, is slow too.
SELECT named.names, named.dimensions, packed.*
FROM (
    SELECT
        dimensions_hash,
        min("timestamp") AS first,
        string_agg(timestamptz_send("timestamp"), '') AS starts,
        string_agg(int8send(count), '') AS counts
        packed_columns
    FROM (
        SELECT
            "timestamp",
            dimensions_hash,
            count
            wanted_columns
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
        LIMIT $7
    ) AS asked_for
    GROUP BY dimensions_hash
) AS packed
CROSS JOIN LATERAL (
    SELECT dimension_names AS names, dimensions::text AS dimensions
    FROM metric_aggregates AS one
    WHERE one.project_id = $1
        AND one.metric_name = $2
        AND one.time_granularity = $3
        AND one."timestamp" = packed.first
        AND one.dimensions_hash = packed.dimensions_hash
    LIMIT 1
) AS named
