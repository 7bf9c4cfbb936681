-- $1 size below which a file is small, $2 seconds of quiet, $3 files that are too many at any time, $4 limit.
SELECT hour, count(*) AS files, sum(rows)::bigint AS rows, sum(bytes)::bigint AS bytes, max(created_at) AS newest
FROM lake_files
WHERE retired_at IS NULL AND tier = 'hot' AND bytes < $1
GROUP BY hour
HAVING count(*) > 1 AND (count(*) > $3 OR max(created_at) < now() - make_interval(secs => $2))
ORDER BY files DESC, hour
LIMIT $4
