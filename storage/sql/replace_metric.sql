-- $1 project, $2 name, $3 definition
UPDATE metric_definitions
SET definition = $3, version = nextval('metric_definition_versions'), changed_at = now(), changed_by = pg_current_xact_id()
WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL
RETURNING project_id, definition, version, created_at, changed_at, deleted_at
