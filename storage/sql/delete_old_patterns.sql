-- $1 time, $2 limit. Patterns that were detected before, but for those that are still to be delivered.
WITH gone AS (
    DELETE FROM patterns
    WHERE ctid = ANY(
        ARRAY(SELECT ctid FROM patterns WHERE detected_at < $1 AND delivery <> 'pending' LIMIT $2)
    )
    RETURNING pg_column_size(patterns.*) AS bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
