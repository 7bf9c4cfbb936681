-- $1 files, which are live and locked.
WITH ranges AS (
    DELETE FROM lake_file_ranges WHERE file_id = ANY($1::bigint[])
),
projects AS (
    DELETE FROM lake_file_projects WHERE file_id = ANY($1::bigint[])
)
UPDATE lake_files SET retired_at = now() WHERE file_id = ANY($1::bigint[])
