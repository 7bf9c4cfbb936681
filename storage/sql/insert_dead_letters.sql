-- Columns of dead letters; received_at as microseconds since the epoch.
INSERT INTO dead_letters (
    partition_id, log_offset, row_number, project_id, event_id, received_at, error_code, message, payload
)
SELECT
    partition_id, log_offset, row_number, project_id, event_id,
    'epoch'::timestamptz + received_at * interval '1 microsecond', error_code, message, payload
FROM unnest(
    $1::smallint[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::bytea[]
) AS letter (
    partition_id, log_offset, row_number, project_id, event_id, received_at, error_code, message, payload
)
