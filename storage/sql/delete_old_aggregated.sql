-- $1 project, $2 time, $3 limit. Records of minutes before that time.
WITH old AS (
    SELECT ctid AS place, pg_column_size(aggregated_events.*) AS bytes
    FROM aggregated_events
    WHERE project_id = $1 AND minute < $2
    ORDER BY minute
    LIMIT $3
),
gone AS (
    DELETE FROM aggregated_events USING old WHERE aggregated_events.ctid = old.place
    RETURNING received_at, events, old.bytes
),
added AS (
    INSERT INTO ledger (project_id, hour, expired_aggregated)
    SELECT $1, date_trunc('hour', received_at, 'UTC') AS hour, sum(events)::bigint FROM gone GROUP BY 2 ORDER BY 2
    ON CONFLICT (project_id, hour) DO UPDATE
    SET expired_aggregated = ledger.expired_aggregated + excluded.expired_aggregated
)
SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
