-- $1 files, $2 hours, $3 projects, $4 rows, $5 bytes.
INSERT INTO lake_file_projects (file_id, hour, project_id, rows, bytes)
SELECT *
FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::bigint[], $5::bigint[])
