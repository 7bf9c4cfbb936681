-- $1 time, $2 limit. No owner of before is left that could put back what it had read.
WITH gone AS (
    DELETE FROM recomputed_days
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM recomputed_days WHERE recomputed_at < $1 LIMIT $2))
    RETURNING pg_column_size(recomputed_days.*) AS bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
