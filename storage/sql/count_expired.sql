-- Follows expire_day.sql and expire_rows.sql. $1 end of the day. Counts their rows as expired, and where the events of
-- their projects begin now. In one order, so that no two writers wait for each other.
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
