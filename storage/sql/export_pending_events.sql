-- $1 project or NULL, $2 partitions, $3 what of them is exported below, $4 earliest time of storing, $5 most counted.
SELECT count(*)
FROM (
    SELECT FROM events_log AS event
    JOIN unnest($2::smallint[], $3::bigint[]) AS behind (partition_id, next_offset)
        ON behind.partition_id = event.partition_id AND event.log_offset >= behind.next_offset
    WHERE ($1::text IS NULL OR event.project_id = $1) AND event.created_at >= $4::timestamptz
    LIMIT $5
) AS waiting
