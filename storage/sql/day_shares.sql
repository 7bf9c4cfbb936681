-- $1 projects or NULL for all, $2 whether the lake is asked, $3 time, $4 what of the lake is due of projects without
-- limits of their own, $5 projects that have some and $6 when theirs are due (NULL is never). Of each project the rows of
-- the day, and how many of them were not exported by that time, or are in no live file of the lake. A row whose time in
-- the lake is over as well needs no file: the one it was in may have gone first.
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
            AND NOT coalesce(greatest(hour + interval '1 hour', (
                SELECT exported_at FROM lake_exports
                WHERE lake_exports.partition_id = records.partition_id AND lake_exports.next_offset > log_offset
                ORDER BY lake_exports.next_offset
                LIMIT 1
            )) <= CASE WHEN limited.project_id IS NULL THEN $4::timestamptz ELSE limited.before END, false)
        ) AS waits
    FROM records
    LEFT JOIN exported USING (partition_id)
    LEFT JOIN unnest($5::text[], $6::timestamptz[]) AS limited (project_id, before) USING (project_id)
)
SELECT project_id, sum(rows)::bigint AS rows, coalesce(sum(rows) FILTER (WHERE waits), 0)::bigint AS waiting
FROM looked_up
GROUP BY project_id
ORDER BY project_id
