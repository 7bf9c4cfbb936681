-- $1 time. What delete_old_dead_letters.sql would delete.
SELECT count(*) AS rows, coalesce(sum(pg_column_size(dead_letters.*)), 0)::bigint AS bytes
FROM dead_letters
LEFT JOIN checkpoints AS lake ON lake.sink = 'lake' AND lake.partition_id = dead_letters.partition_id
WHERE created_at < $1 AND (lake.next_offset IS NULL OR log_offset < lake.next_offset)
