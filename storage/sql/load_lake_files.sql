-- $1 files. All that the manifest knows of those that are live, locked until the transaction ends.
SELECT
    file.file_id, file.key, file.hour, file.rows, file.bytes, file.checksum, file.id_digest, file.min_timestamp,
    file.max_timestamp, file.tier,
    ARRAY(SELECT partition_id FROM lake_file_ranges WHERE file_id = file.file_id ORDER BY partition_id, first_offset)
        AS partition_ids,
    ARRAY(SELECT first_offset FROM lake_file_ranges WHERE file_id = file.file_id ORDER BY partition_id, first_offset)
        AS first_offsets,
    ARRAY(SELECT next_offset FROM lake_file_ranges WHERE file_id = file.file_id ORDER BY partition_id, first_offset)
        AS next_offsets,
    ARRAY(SELECT project_id FROM lake_file_projects WHERE file_id = file.file_id ORDER BY project_id)
        AS project_ids,
    ARRAY(SELECT rows FROM lake_file_projects WHERE file_id = file.file_id ORDER BY project_id) AS project_rows
FROM lake_files AS file
WHERE file.file_id = ANY($1::bigint[]) AND file.retired_at IS NULL
ORDER BY file.file_id
