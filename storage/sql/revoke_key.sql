-- $1 key id, $2 the project that it must belong to, or NULL for any
UPDATE api_keys
SET revoked_at = coalesce(revoked_at, now()), changed_by = pg_current_xact_id()
WHERE key_id = $1 AND ($2::text IS NULL OR project_id = $2)
RETURNING key_id, project_id, kind, key_hash, created_at, expires_at, revoked_at
