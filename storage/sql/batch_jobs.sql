-- $1 whether only those that have not ended, the oldest first, else all, the newest first; $2 how many.
WITH chosen AS (
    SELECT *
    FROM batch_jobs
    WHERE NOT $1 OR state IN ('waiting', 'running')
    ORDER BY CASE WHEN $1 THEN job_id ELSE -job_id END
    LIMIT $2
)
SELECT
    chosen.kind, chosen.daily, chosen.first_day, chosen.last_day, chosen.project_id, chosen.metric_name, chosen.dry_run,
    chosen.job_id, chosen.state, chosen.created_at, chosen.started_at, chosen.ended_at,
    counted.days, counted.days_left, counted.days_superseded, counted.days_failed, chosen.days_open,
    (
        SELECT count(DISTINCT each)
        FROM batch_pieces AS piece CROSS JOIN unnest(piece.projects) AS each
        WHERE piece.job_id = chosen.job_id
    ) AS projects,
    counted.events, counted.rows, counted.changed, counted.seconds,
    ARRAY(
        SELECT DISTINCT error FROM batch_pieces WHERE job_id = chosen.job_id AND error IS NOT NULL ORDER BY error LIMIT $3
    ) AS errors
FROM chosen
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(of_piece.days), 0)::bigint AS days,
        coalesce(sum(of_piece.days) FILTER (WHERE state IN ('open', 'running')), 0)::bigint AS days_left,
        coalesce(sum(of_piece.days) FILTER (WHERE superseded), 0)::bigint AS days_superseded,
        coalesce(sum(of_piece.days) FILTER (WHERE state = 'failed'), 0)::bigint AS days_failed,
        coalesce(sum(events), 0)::bigint AS events,
        coalesce(sum(rows), 0)::bigint AS rows,
        coalesce(sum(changed), 0)::bigint AS changed,
        coalesce(sum(seconds), 0) AS seconds
    FROM batch_pieces
    CROSS JOIN LATERAL (SELECT (last_day - first_day + 1) * cardinality(projects) AS days) AS of_piece
    WHERE job_id = chosen.job_id
) AS counted
ORDER BY CASE WHEN $1 THEN chosen.job_id ELSE -chosen.job_id END
