-- $1 plan, then columns of files. Fewer rows come back than were given when a key is there already.
INSERT INTO lake_files (
    plan_id, key, hour, rows, bytes, checksum, id_digest, min_timestamp, max_timestamp, tier
)
SELECT $1, file.*
FROM unnest(
    $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::text[], $7::bigint[], $8::timestamptz[],
    $9::timestamptz[], $10::text[]
) AS file
ON CONFLICT DO NOTHING
RETURNING file_id, key
