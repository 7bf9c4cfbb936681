-- $1 projects, $2 and $3 bounds of the time or NULL. A file that holds several of the projects comes once.
SELECT
    file.file_id, file.plan_id, file.key, file.hour, file.rows, file.bytes, file.checksum, file.id_digest,
    file.min_timestamp, file.max_timestamp, file.tier, file.created_at
FROM lake_files AS file
WHERE file.file_id IN (
        SELECT held.file_id
        FROM lake_file_projects AS held
        WHERE held.project_id = ANY($1::text[])
            AND ($2::timestamptz IS NULL OR held.hour > $2::timestamptz - interval '1 hour')
            AND ($3::timestamptz IS NULL OR held.hour < $3::timestamptz)
    )
    AND ($2::timestamptz IS NULL OR file.max_timestamp >= $2)
    AND ($3::timestamptz IS NULL OR file.min_timestamp < $3)
ORDER BY file.hour, file.file_id
