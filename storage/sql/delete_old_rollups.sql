-- $1 project, $2 metric, $3 granularity, $4 time, $5 limit. Roll-ups of windows that began before, the oldest first: how
-- many are deleted, and their bytes.
WITH old AS (
    SELECT "timestamp", dimensions_hash, pg_column_size(metric_aggregates.*) AS bytes
    FROM metric_aggregates
    WHERE project_id = $1 AND metric_name = $2 AND time_granularity = $3 AND "timestamp" < $4
    ORDER BY "timestamp", dimensions_hash
    LIMIT $5
),
gone AS (
    DELETE FROM metric_aggregates USING old
    WHERE project_id = $1 AND metric_name = $2 AND time_granularity = $3
        AND metric_aggregates."timestamp" = old."timestamp"
        AND metric_aggregates.dimensions_hash = old.dimensions_hash
    RETURNING old.bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
