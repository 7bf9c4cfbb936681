-- $1 partition, $2 and $3 offsets, $4 earliest time of storing, $5 rows of a piece. Pieces of whole records.
WITH records AS (
    SELECT log_offset, count(*) AS rows, min(created_at) AS stored_from, max(created_at) AS stored_to
    FROM events_log
    WHERE partition_id = $1 AND log_offset >= $2 AND log_offset < $3 AND created_at >= $4
    GROUP BY log_offset
),
pieces AS (
    SELECT *, div(sum(rows) OVER (ORDER BY log_offset) - rows, $5::bigint) AS piece FROM records
)
SELECT min(log_offset) AS first_offset, sum(rows)::bigint AS rows, min(stored_from), max(stored_to)
FROM pieces
GROUP BY piece
ORDER BY piece
