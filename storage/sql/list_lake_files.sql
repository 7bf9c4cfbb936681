-- $1 project or NULL, $2 and $3 bounds of the time or NULL, $4 and $5 hour and id of the last file before or NULL, $6
-- limit.
SELECT
    file_id, plan_id, key, hour, rows, bytes, checksum, id_digest, min_timestamp, max_timestamp, tier, created_at
FROM lake_files
WHERE retired_at IS NULL
    AND (
        $1::text IS NULL
        OR EXISTS (
            SELECT FROM lake_file_projects AS held
            WHERE held.project_id = $1 AND held.hour = lake_files.hour AND held.file_id = lake_files.file_id
        )
    )
    AND ($2::timestamptz IS NULL OR hour > $2::timestamptz - interval '1 hour')
    AND ($3::timestamptz IS NULL OR hour < $3::timestamptz)
    AND ($4::timestamptz IS NULL OR (hour, file_id) > ($4::timestamptz, $5::bigint))
ORDER BY hour, file_id
LIMIT $6
