-- $1 time, $2 limit. No owner of before is left that could put back what it had read.
WITH old AS (
    SELECT ctid AS place, pg_column_size(recomputed_days.*) AS bytes
    FROM recomputed_days
    WHERE recomputed_at < $1
    LIMIT $2
),
gone AS (
    DELETE FROM recomputed_days USING old WHERE recomputed_days.ctid = old.place RETURNING old.bytes
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
