-- $1 and $2 bounds of the time or NULL, $3 and $4 hour and id of the last file before or NULL, $5 limit.
SELECT file_id, key, hour, rows, bytes, min_timestamp, max_timestamp, tier, created_at
FROM lake_files
WHERE retired_at IS NULL
    AND ($1::timestamptz IS NULL OR hour > $1::timestamptz - interval '1 hour')
    AND ($2::timestamptz IS NULL OR hour < $2::timestamptz)
    AND ($3::timestamptz IS NULL OR (hour, file_id) > ($3::timestamptz, $4::bigint))
ORDER BY hour, file_id
LIMIT $5
