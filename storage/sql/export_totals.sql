-- $1 and $2 bounds of the time or NULL.
SELECT
    count(*) AS files,
    coalesce(sum(rows), 0)::bigint AS rows,
    coalesce(sum(bytes), 0)::bigint AS bytes,
    count(*) FILTER (WHERE tier = 'cold') AS cold_files,
    coalesce(sum(bytes) FILTER (WHERE tier = 'cold'), 0)::bigint AS cold_bytes,
    min(hour) AS first_hour,
    max(hour) AS last_hour
FROM lake_files
WHERE retired_at IS NULL
    AND ($1::timestamptz IS NULL OR hour > $1::timestamptz - interval '1 hour')
    AND ($2::timestamptz IS NULL OR hour < $2::timestamptz)
