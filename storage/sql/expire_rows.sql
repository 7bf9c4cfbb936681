-- $1 end of the day, $2 projects, $3 and $4 bounds of the rows' places. Deletes these rows of the projects; how they are
-- counted as expired is told by count_expired.sql, which follows.
WITH gone AS (
    DELETE FROM events_log_day
    WHERE ctid >= $3::tid AND ctid < $4::tid AND project_id = ANY($2::text[])
    RETURNING project_id, received_at
),
counted AS (
    SELECT project_id, date_trunc('hour', received_at, 'UTC') AS hour, count(*) AS events FROM gone GROUP BY 1, 2
),
