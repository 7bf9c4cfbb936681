-- $1 projects and $2 days of one length, $3 with which metrics each was counted, $4 whether by the daily job; the days
-- are locked. What tells nothing beyond the metrics that all projects have is kept only of a project that has, or had,
-- metrics of its own: one of them may have been in the place of one that all have.
WITH done AS (
    SELECT project_id, day, built, position(';' IN built) > 0 OR EXISTS (
        SELECT FROM metric_definitions AS own WHERE own.project_id = done.project_id
    ) AS tells
    FROM unnest($1::text[], $2::date[], $3::text[]) AS done (project_id, day, built)
),
audited AS (
    UPDATE recomputed_days AS kept SET audited = $4, recomputed_at = now()
    FROM done
    WHERE kept.project_id = done.project_id AND kept.day = done.day
),
forgotten AS (
    DELETE FROM counted_days AS kept
    USING done
    WHERE kept.project_id = done.project_id AND kept.day = done.day AND NOT done.tells
)
INSERT INTO counted_days (project_id, day, built)
SELECT project_id, day, built FROM done WHERE tells ORDER BY project_id COLLATE "C", day
ON CONFLICT (project_id, day) DO UPDATE SET built = excluded.built
