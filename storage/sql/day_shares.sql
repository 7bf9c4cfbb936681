-- $1 projects or NULL for all, $2 whether the lake is asked, $3 time. Of each project the rows of the day, and how many
-- of them were not exported by that time, or are in no live file of the lake.
WITH exported AS (
    -- What was exported before the first range that is known was exported long ago.
    SELECT partition_id, coalesce(max(next_offset) FILTER (WHERE exported_at <= $3), min(first_offset)) AS below
    FROM lake_exports
    GROUP BY partition_id
),
records AS (
    SELECT project_id, partition_id, date_trunc('hour', "timestamp", 'UTC') AS hour, log_offset, count(*) AS rows
    FROM events_log_day
    WHERE $1::text[] IS NULL OR project_id = ANY($1)
    GROUP BY 1, 2, 3, 4
),
looked_up AS (
    SELECT project_id, rows,
        $2::boolean AND (
            log_offset >= coalesce(exported.below, 0)
            OR NOT EXISTS (
                SELECT FROM lake_file_ranges AS covering
                WHERE covering.partition_id = records.partition_id AND covering.hour = records.hour
                    AND covering.first_offset <= records.log_offset AND covering.next_offset > records.log_offset
            )
        ) AS waits
    FROM records LEFT JOIN exported USING (partition_id)
)
SELECT project_id, sum(rows)::bigint AS rows, coalesce(sum(rows) FILTER (WHERE waits), 0)::bigint AS waiting
FROM looked_up
GROUP BY project_id
ORDER BY project_id
