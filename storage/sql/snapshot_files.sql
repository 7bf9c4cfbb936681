-- $1 project, $2 and $3 bounds of the time or NULL.
SELECT
    file.file_id, file.plan_id, file.key, file.hour, file.rows, file.bytes, file.checksum, file.id_digest,
    file.min_timestamp, file.max_timestamp, file.tier, file.created_at
FROM lake_file_projects AS held
JOIN lake_files AS file USING (file_id)
WHERE held.project_id = $1
    AND ($2::timestamptz IS NULL OR (held.hour > $2::timestamptz - interval '1 hour' AND file.max_timestamp >= $2))
    AND ($3::timestamptz IS NULL OR (held.hour < $3::timestamptz AND file.min_timestamp < $3))
ORDER BY file.hour, file.file_id
