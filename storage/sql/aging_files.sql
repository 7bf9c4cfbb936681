-- $1 hours that end by then are cold, $2 what is due of projects without limits of their own, $3 projects that have
-- some and $4 when theirs are due, $5 and $6 hour and id of the last file before or NULL, $7 limit. Live files of which
-- something is due, with whose events they hold. What is old counts from its hour's end, or from its export if that is
-- later; infinity counts as never.
WITH aged AS (
    SELECT *, greatest(hour + interval '1 hour', exported_at) AS since
    FROM lake_files
    WHERE retired_at IS NULL AND ($5::timestamptz IS NULL OR (hour, file_id) > ($5::timestamptz, $6::bigint))
),
chosen AS (
    SELECT * FROM aged
    WHERE (tier = 'hot' AND hour + interval '1 hour' <= $1::timestamptz)
        OR since <= $2::timestamptz
        OR EXISTS (
            SELECT FROM unnest($3::text[], $4::timestamptz[]) AS limited (project_id, before)
            JOIN lake_file_projects AS held
                ON held.project_id = limited.project_id AND held.hour = aged.hour AND held.file_id = aged.file_id
            WHERE aged.since <= limited.before
        )
    ORDER BY hour, file_id
    LIMIT $7
)
SELECT chosen.file_id, chosen.key, chosen.hour, chosen.exported_at, chosen.tier, chosen.rows, chosen.bytes,
    held.projects, held.project_rows
FROM chosen
CROSS JOIN LATERAL (
    SELECT array_agg(project_id ORDER BY project_id) AS projects, array_agg(rows ORDER BY project_id) AS project_rows
    FROM lake_file_projects WHERE file_id = chosen.file_id
) AS held
ORDER BY chosen.hour, chosen.file_id
