-- $1 id, $2 owner, $3 its id, $4 kind, $5 URL, $6 endpoint, $7 region, $8 path style, $9 credentials, $10 enabled.
INSERT INTO lake_destinations (
    destination_id, owner, owner_id, kind, url, endpoint_url, region, path_style, credentials, enabled
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT DO NOTHING
RETURNING destination_id
