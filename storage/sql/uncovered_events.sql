-- $1 hours, $2 partitions, $3 first offsets, $4 next offsets of what files cover; $5 partitions, $6 what of each should
-- be in files. Stored records of an hour that no file covers.
WITH wanted AS (
    SELECT * FROM unnest($5::smallint[], $6::bigint[]) AS wanted (partition_id, below)
),
records AS (
    SELECT partition_id, date_trunc('hour', "timestamp", 'UTC') AS hour, log_offset, count(*) AS events
    FROM events_log
    JOIN wanted USING (partition_id)
    WHERE log_offset < below
    GROUP BY 1, 2, 3
),
covered AS (
    SELECT * FROM unnest($1::timestamptz[], $2::smallint[], $3::bigint[], $4::bigint[])
        AS covered (hour, partition_id, first_offset, next_offset)
)
SELECT partition_id, hour, min(log_offset) AS first_offset, max(log_offset) + 1 AS next_offset, sum(events)::bigint
FROM records
WHERE NOT EXISTS (
    SELECT FROM covered
    WHERE covered.partition_id = records.partition_id AND covered.hour = records.hour
        AND covered.first_offset <= records.log_offset AND covered.next_offset > records.log_offset
)
GROUP BY partition_id, hour
ORDER BY partition_id, hour
