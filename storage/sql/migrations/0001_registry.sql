-- What migrations were applied, facts fixed at creation, projects and their keys.
-- Text columns that are compared or indexed are COLLATE "C": ids are opaque, and bytes compare fastest.

CREATE TABLE schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE system (
    name text COLLATE "C" PRIMARY KEY,
    value jsonb NOT NULL,
    fixed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE projects (
    project_id text COLLATE "C" PRIMARY KEY CHECK (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- changed_by is the transaction that last wrote the row: see storage/registry.py, changed_keys.
CREATE TABLE api_keys (
    key_id uuid PRIMARY KEY DEFAULT uuidv7(),
    project_id text COLLATE "C" REFERENCES projects,
    kind text NOT NULL CHECK (kind IN ('write', 'read', 'import', 'admin')),
    key_hash bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT only_admin_keys_are_of_no_project CHECK (project_id IS NOT NULL OR kind = 'admin')
);

CREATE INDEX api_keys_project ON api_keys (project_id);
CREATE INDEX api_keys_changed ON api_keys (changed_by);
