-- What contradicts the law of the manifest.
WITH exports AS (
    SELECT
        partition_id, next_offset,
        lead(first_offset) OVER (PARTITION BY partition_id ORDER BY next_offset) AS next_first,
        row_number() OVER (PARTITION BY partition_id ORDER BY next_offset DESC) AS from_last
    FROM lake_exports
),
ranges AS (
    SELECT
        partition_id, hour, first_offset, file_id,
        max(next_offset) OVER (
            PARTITION BY partition_id, hour ORDER BY first_offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS covered_below
    FROM lake_file_ranges
)
SELECT format('partition %s: offsets from %s were exported, then from %s', partition_id, next_offset, next_first)
FROM exports
WHERE next_first <> next_offset
UNION ALL
SELECT format('partition %s: exported below %s, and the checkpoint is %s', partition_id, exports.next_offset,
    checkpoints.next_offset)
FROM exports
JOIN checkpoints USING (partition_id)
WHERE from_last = 1 AND sink = 'lake' AND checkpoints.next_offset <> exports.next_offset
UNION ALL
SELECT format('partition %s: offset %s of %s is in another file and in %s', partition_id, first_offset, hour, key)
FROM ranges
JOIN lake_files USING (file_id, hour)
WHERE first_offset < covered_below
UNION ALL
SELECT format('%s has %s rows, of its projects %s', key, rows, of_projects)
FROM lake_files
CROSS JOIN LATERAL (
    SELECT coalesce(sum(held.rows), 0) AS of_projects FROM lake_file_projects AS held
    WHERE held.file_id = lake_files.file_id
) AS held
WHERE retired_at IS NULL AND rows <> of_projects
