-- $1 projects and $2 days of one length, $3 with which metrics each was counted, $4 whether by the daily job; the days
-- are locked. What tells nothing beyond the metrics that all projects have is not kept.
WITH done AS (
    SELECT project_id, day, built FROM unnest($1::text[], $2::date[], $3::text[]) AS done (project_id, day, built)
),
audited AS (
    UPDATE recomputed_days AS kept SET audited = $4, recomputed_at = now()
    FROM done
    WHERE kept.project_id = done.project_id AND kept.day = done.day
),
forgotten AS (
    DELETE FROM counted_days AS kept
    USING done
    WHERE kept.project_id = done.project_id AND kept.day = done.day AND position(';' IN done.built) = 0
)
INSERT INTO counted_days (project_id, day, built)
SELECT project_id, day, built FROM done WHERE position(';' IN built) > 0 ORDER BY project_id COLLATE "C", day
ON CONFLICT (project_id, day) DO UPDATE SET built = excluded.built
