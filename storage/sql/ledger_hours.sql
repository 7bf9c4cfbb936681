-- $1 project, $2 and $3 bounds of the hours or NULL
SELECT hour, received, stored, duplicate, dead_lettered, rejected, lost, aggregated, expired
FROM ledger
WHERE project_id = $1 AND ($2::timestamptz IS NULL OR hour >= $2) AND ($3::timestamptz IS NULL OR hour < $3)
ORDER BY hour
