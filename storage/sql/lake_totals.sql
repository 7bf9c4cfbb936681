SELECT
    count(*) FILTER (WHERE retired_at IS NULL) AS files,
    coalesce(sum(rows) FILTER (WHERE retired_at IS NULL), 0)::bigint AS rows,
    coalesce(sum(bytes) FILTER (WHERE retired_at IS NULL), 0)::bigint AS bytes,
    count(*) FILTER (WHERE retired_at IS NULL AND tier = 'cold') AS cold_files,
    coalesce(sum(bytes) FILTER (WHERE retired_at IS NULL AND tier = 'cold'), 0)::bigint AS cold_bytes,
    count(*) FILTER (WHERE retired_at IS NOT NULL) AS retired_files,
    coalesce(sum(bytes) FILTER (WHERE retired_at IS NOT NULL), 0)::bigint AS retired_bytes,
    (SELECT count(*) FROM lake_plans WHERE state = 'open') AS open_plans,
    min(hour) FILTER (WHERE retired_at IS NULL) AS first_hour,
    max(hour) FILTER (WHERE retired_at IS NULL) AS last_hour
FROM lake_files
