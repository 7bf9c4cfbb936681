-- $1 and $2 bounds of the time or NULL, $3 and $4 hour and id of the last file before or NULL, $5 limit, $6 project.
SELECT
    held.file_id, file.key, held.hour, held.rows, held.bytes, file.min_timestamp, file.max_timestamp, file.tier,
    file.created_at
FROM lake_file_projects AS held
JOIN lake_files AS file USING (file_id)
WHERE held.project_id = $6
    AND ($1::timestamptz IS NULL OR held.hour > $1::timestamptz - interval '1 hour')
    AND ($2::timestamptz IS NULL OR held.hour < $2::timestamptz)
    AND ($3::timestamptz IS NULL OR (held.hour, held.file_id) > ($3::timestamptz, $4::bigint))
ORDER BY held.hour, held.file_id
LIMIT $5
