-- $1 projects, $2 and $3 bounds of the hour of receipt: those of which events were only aggregated.
SELECT DISTINCT project_id
FROM ledger
WHERE project_id = ANY($1::text[]) AND hour >= $2::timestamptz AND hour < $3::timestamptz AND aggregated > 0
