-- $1 project or NULL for all, $2 the last key id of the page before or NULL, $3 page size
SELECT key_id, project_id, kind, key_hash, created_at, expires_at, revoked_at
FROM api_keys
WHERE ($1::text IS NULL OR project_id = $1) AND ($2::uuid IS NULL OR key_id > $2)
ORDER BY key_id
LIMIT $3
