-- $1 and $2 bounds of the time or NULL, $3 project.
SELECT
    count(*) AS files,
    coalesce(sum(held.rows), 0)::bigint AS rows,
    coalesce(sum(held.bytes), 0)::bigint AS bytes,
    count(*) FILTER (WHERE file.tier = 'cold') AS cold_files,
    coalesce(sum(held.bytes) FILTER (WHERE file.tier = 'cold'), 0)::bigint AS cold_bytes,
    min(held.hour) AS first_hour,
    max(held.hour) AS last_hour
FROM lake_file_projects AS held
JOIN lake_files AS file USING (file_id)
WHERE held.project_id = $3
    AND ($1::timestamptz IS NULL OR held.hour > $1::timestamptz - interval '1 hour')
    AND ($2::timestamptz IS NULL OR held.hour < $2::timestamptz)
