-- $1 project, $2 name, $3 definition. No row comes back when there is such a metric; a deleted one begins anew.
INSERT INTO metric_definitions AS kept (project_id, name, definition)
VALUES ($1, $2, $3)
ON CONFLICT (project_id, name) DO UPDATE
SET definition = excluded.definition,
    version = excluded.version,
    created_at = excluded.created_at,
    changed_at = excluded.changed_at,
    deleted_at = NULL,
    changed_by = excluded.changed_by
WHERE kept.deleted_at IS NOT NULL
RETURNING project_id, definition, version, created_at, changed_at, deleted_at
