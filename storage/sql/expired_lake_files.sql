-- $1 seconds, $2 limit.
SELECT
    file_id, plan_id, key, hour, rows, bytes, checksum, id_digest, min_timestamp, max_timestamp, tier, created_at
FROM lake_files
WHERE retired_at < now() - make_interval(secs => $1)
ORDER BY retired_at, file_id
LIMIT $2
