-- $1 projects, $2 files, $3 rows, $4 bytes; of today. In the order of the projects.
INSERT INTO lake_volumes (project_id, day, files, rows, bytes)
SELECT added.project_id, (now() AT TIME ZONE 'UTC')::date, added.files, added.rows, added.bytes
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS added (project_id, files, rows, bytes)
ORDER BY added.project_id
ON CONFLICT (project_id, day) DO UPDATE
SET files = lake_volumes.files + excluded.files,
    rows = lake_volumes.rows + excluded.rows,
    bytes = lake_volumes.bytes + excluded.bytes
