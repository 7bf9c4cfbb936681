-- $1 plan of a swap, $2 files that it retires. What takes their place was exported when the newest of them was.
UPDATE lake_files
SET exported_at = (SELECT max(exported_at) FROM lake_files WHERE file_id = ANY($2::bigint[]))
WHERE plan_id = $1 AND file_id <> ALL($2::bigint[]) AND retired_at IS NULL
