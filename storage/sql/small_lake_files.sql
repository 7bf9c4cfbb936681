-- $1 hour, $2 size below which a file is small.
SELECT
    file_id, plan_id, key, hour, rows, bytes, checksum, id_digest, min_timestamp, max_timestamp, tier, created_at
FROM lake_files
WHERE retired_at IS NULL AND tier = 'hot' AND hour = $1 AND bytes < $2
ORDER BY file_id
