-- $1 destination, $2 projects, $3 rows, $4 bytes; of one file, today.
INSERT INTO lake_delivery_volumes (destination_id, project_id, day, files, rows, bytes)
SELECT $1, added.project_id, (now() AT TIME ZONE 'UTC')::date, 1, added.rows, added.bytes
FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS added (project_id, rows, bytes)
ORDER BY added.project_id
ON CONFLICT (destination_id, project_id, day) DO UPDATE
SET files = lake_delivery_volumes.files + excluded.files,
    rows = lake_delivery_volumes.rows + excluded.rows,
    bytes = lake_delivery_volumes.bytes + excluded.bytes
