-- $1 files, $2 seconds. Those that an open swap which is not older is about to retire.
SELECT unnest(file_ids) AS file_id
FROM lake_plans
WHERE state = 'open' AND file_ids && $1::bigint[] AND created_at > now() - make_interval(secs => $2)
