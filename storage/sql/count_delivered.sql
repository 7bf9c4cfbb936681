-- $1 destination, $2 files, $3 rows, $4 bytes.
UPDATE lake_destinations
SET files = files + $2, rows = rows + $3, bytes = bytes + $4, failing_since = NULL,
    delivered_at = CASE WHEN $2::bigint > 0 THEN now() ELSE delivered_at END
WHERE destination_id = $1
