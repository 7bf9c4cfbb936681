-- $1 run, $2 kind, $3 name, $4 files, $5 rows, $6 bytes. Batches of one name add up.
INSERT INTO retention_removals (run_id, kind, name, files, rows, bytes)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (run_id, kind, name) DO UPDATE
SET files = retention_removals.files + excluded.files,
    rows = retention_removals.rows + excluded.rows,
    bytes = retention_removals.bytes + excluded.bytes,
    removed_at = excluded.removed_at
