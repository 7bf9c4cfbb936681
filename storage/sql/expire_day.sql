-- $1 end of the day. All rows of the day; how they are counted as expired is told by count_expired.sql, which follows.
WITH counted AS (
    SELECT project_id, date_trunc('hour', received_at, 'UTC') AS hour, count(*) AS events
    FROM events_log_day
    GROUP BY 1, 2
),
