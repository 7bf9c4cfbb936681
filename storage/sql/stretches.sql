-- $1 partition, $2 and $3 offsets, $4 earliest time of storing, $5 rows and $6 bytes of a piece. Pieces of whole records.
-- What has a size of its own is properties and context; their size is known without reading them.
WITH records AS (
    SELECT log_offset, count(*) AS rows, min(created_at) AS stored_from, max(created_at) AS stored_to,
        sum(pg_column_size(properties) + coalesce(pg_column_size(context), 0)) AS bytes
    FROM events_log
    WHERE partition_id = $1 AND log_offset >= $2 AND log_offset < $3 AND created_at >= $4
    GROUP BY log_offset
),
pieces AS (
    SELECT *,
        div(sum(rows) OVER before - rows, $5::bigint) AS by_rows,
        div(sum(bytes) OVER before - bytes, $6::bigint) AS by_bytes
    FROM records
    WINDOW before AS (ORDER BY log_offset)
)
SELECT min(log_offset) AS first_offset, sum(rows)::bigint AS rows, min(stored_from), max(stored_to)
FROM pieces
GROUP BY by_rows, by_bytes
ORDER BY first_offset
