-- $1 one destination or NULL, $2 the last one of the page before, $3 limit.
SELECT destination_id, owner, owner_id, kind, url, endpoint_url, region, path_style, credentials, enabled
FROM lake_destinations
WHERE ($1::text IS NULL OR destination_id = $1) AND destination_id > $2
ORDER BY destination_id
LIMIT $3
