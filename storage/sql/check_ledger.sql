-- $1 project or NULL for all, $2 and $3 bounds of the hours or NULL, $4 most differences to return.
-- Records of aggregated events do not know when their events were received: they are compared for whole projects, and
-- only without bounds, under the first hour that has some.
-- Rows that were removed when their time was over count as found: the ledger has their number.
-- The session's time zone is UTC. Every count of the ledger beside what it must be; rows come back where they differ.
WITH counted AS (
    SELECT * FROM ledger
    WHERE ($1::text IS NULL OR project_id = $1)
        AND ($2::timestamptz IS NULL OR hour >= $2)
        AND ($3::timestamptz IS NULL OR hour < $3)
),
stored AS (
    SELECT project_id, date_trunc('hour', received_at, 'UTC') AS hour, count(*) AS events
    FROM events_log
    WHERE ($1::text IS NULL OR project_id = $1)
        AND ($2::timestamptz IS NULL OR received_at >= $2)
        AND ($3::timestamptz IS NULL OR received_at < $3)
    GROUP BY 1, 2
),
dead AS (
    SELECT project_id, date_trunc('hour', received_at, 'UTC') AS hour, count(*) AS events
    FROM dead_letters
    WHERE ($1::text IS NULL OR project_id = $1)
        AND ($2::timestamptz IS NULL OR received_at >= $2)
        AND ($3::timestamptz IS NULL OR received_at < $3)
    GROUP BY 1, 2
),
aggregated_in_ledger AS (
    SELECT project_id, min(hour) FILTER (WHERE aggregated > 0) AS hour, sum(aggregated)::bigint AS events,
        sum(expired_aggregated)::bigint AS expired
    FROM counted
    GROUP BY project_id
),
aggregated AS (
    SELECT project_id, date_trunc('hour', min(received_at), 'UTC') AS hour, sum(events)::bigint AS events
    FROM aggregated_events
    WHERE ($1::text IS NULL OR project_id = $1)
    GROUP BY project_id
),
differences AS (
    SELECT project_id, hour, 'received' AS what, received AS in_ledger,
        stored + duplicate + dead_lettered + rejected + lost + aggregated AS found
    FROM counted
    UNION ALL
    SELECT project_id, hour, 'stored', coalesce(counted.stored, 0),
        coalesce(stored.events, 0) + coalesce(counted.expired, 0)
    FROM counted FULL JOIN stored USING (project_id, hour)
    UNION ALL
    SELECT project_id, hour, 'dead_lettered', coalesce(counted.dead_lettered, 0),
        coalesce(dead.events, 0) + coalesce(counted.expired_dead_letters, 0)
    FROM counted FULL JOIN dead USING (project_id, hour)
    UNION ALL
    SELECT project_id, coalesce(known.hour, aggregated.hour), 'aggregated', coalesce(known.events, 0),
        coalesce(aggregated.events, 0) + coalesce(known.expired, 0)
    FROM aggregated_in_ledger AS known FULL JOIN aggregated USING (project_id)
    WHERE $2::timestamptz IS NULL AND $3::timestamptz IS NULL
)
SELECT project_id, hour, what, in_ledger, found
FROM differences
WHERE in_ledger <> found
ORDER BY project_id, hour, what
LIMIT $4
