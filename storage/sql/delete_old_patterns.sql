-- $1 time, $2 limit. Patterns that were detected before, but for those that are still to be delivered.
WITH old AS (
    SELECT ctid AS place, pg_column_size(patterns.*) AS bytes
    FROM patterns
    WHERE detected_at < $1 AND delivery <> 'pending'
    LIMIT $2
),
gone AS (
    DELETE FROM patterns USING old WHERE patterns.ctid = old.place RETURNING old.bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
