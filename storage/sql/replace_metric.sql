-- $1 project, $2 name, $3 definition. Where only its patterns are others, what was counted of it still holds: it keeps
-- its version and time. Who follows the changes sees it all the same.
UPDATE metric_definitions
SET definition = $3,
    version = CASE
        WHEN definition - 'patterns' = $3::jsonb - 'patterns' THEN version
        ELSE nextval('metric_definition_versions')
    END,
    changed_at = CASE WHEN definition - 'patterns' = $3::jsonb - 'patterns' THEN changed_at ELSE now() END,
    changed_by = pg_current_xact_id()
WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL
RETURNING project_id, definition, version, created_at, changed_at, deleted_at
