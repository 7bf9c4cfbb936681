-- $1 end of the day, $2 projects, $3 and $4 bounds of the rows' places. Deletes these rows of the projects, and counts
-- them as expired.
WITH gone AS (
    DELETE FROM events_log_day
    WHERE ctid >= $3::tid AND ctid < $4::tid AND project_id = ANY($2::text[])
    RETURNING project_id, received_at
),
counted AS (
    SELECT project_id, date_trunc('hour', received_at, 'UTC') AS hour, count(*) AS events FROM gone GROUP BY 1, 2
),
added AS (
    INSERT INTO ledger (project_id, hour, expired)
    SELECT project_id, hour, events FROM counted ORDER BY project_id, hour
    ON CONFLICT (project_id, hour) DO UPDATE SET expired = ledger.expired + excluded.expired
),
begun AS (
    INSERT INTO expired_events (project_id, stored_before)
    SELECT DISTINCT project_id, $1::timestamptz FROM counted ORDER BY project_id
    ON CONFLICT (project_id) DO UPDATE
    SET stored_before = greatest(expired_events.stored_before, excluded.stored_before)
)
SELECT coalesce(sum(events), 0)::bigint FROM counted
