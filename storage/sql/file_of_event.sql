-- $1 partition, $2 offset, $3 timestamp. Ranges of an hour do not overlap: of those that begin below, the last.
SELECT file.key, file.rows, exported.exported_at
FROM (
    SELECT file_id, next_offset FROM lake_file_ranges
    WHERE partition_id = $1 AND hour = date_trunc('hour', $3::timestamptz, 'UTC') AND first_offset <= $2
    ORDER BY first_offset DESC
    LIMIT 1
) AS covering
JOIN lake_files AS file USING (file_id)
LEFT JOIN LATERAL (
    SELECT exported_at FROM lake_exports WHERE partition_id = $1 AND lake_exports.next_offset > $2
    ORDER BY lake_exports.next_offset
    LIMIT 1
) AS exported ON true
WHERE covering.next_offset > $2
