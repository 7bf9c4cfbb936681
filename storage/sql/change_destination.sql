-- $1 id, $2 endpoint, $3 region, $4 path style, $5 credentials, $6 enabled.
UPDATE lake_destinations
SET endpoint_url = $2, region = $3, path_style = $4, credentials = $5, enabled = $6, failing_since = NULL
WHERE destination_id = $1
RETURNING destination_id
