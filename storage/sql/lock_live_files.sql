-- $1 files. In their order, so that no two swaps wait for each other.
SELECT file_id, hour
FROM lake_files
WHERE file_id = ANY($1::bigint[]) AND retired_at IS NULL
ORDER BY file_id
FOR NO KEY UPDATE
