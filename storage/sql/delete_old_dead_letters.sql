-- $1 time, $2 limit. What a lake has not exported yet it needs to leave out.
WITH old AS (
    SELECT dead_letters.ctid AS place, pg_column_size(dead_letters.*) AS bytes
    FROM dead_letters
    LEFT JOIN checkpoints AS lake ON lake.sink = 'lake' AND lake.partition_id = dead_letters.partition_id
    WHERE created_at < $1 AND (lake.next_offset IS NULL OR log_offset < lake.next_offset)
    LIMIT $2
),
gone AS (
    DELETE FROM dead_letters USING old WHERE dead_letters.ctid = old.place
    RETURNING project_id, received_at, old.bytes
),
added AS (
    INSERT INTO ledger (project_id, hour, expired_dead_letters)
    SELECT project_id, date_trunc('hour', received_at, 'UTC'), count(*) FROM gone GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (project_id, hour) DO UPDATE
    SET expired_dead_letters = ledger.expired_dead_letters + excluded.expired_dead_letters
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
