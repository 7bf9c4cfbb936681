INSERT INTO patterns (
    pattern_id, project_id, metric_name, kind, direction, window_size, window_start, dimensions,
    value, mean, expected, sigmas, events, windows, seasonal, detected_at,
    delivery, webhook_url, next_attempt_at
)
SELECT
    pattern_id, project_id, metric_name, kind, direction, window_size, to_timestamp(window_start), dimensions::jsonb,
    value, mean, expected, sigmas, events, windows, seasonal, to_timestamp(detected_at),
    CASE WHEN webhook_url IS NULL THEN 'none' ELSE 'pending' END, webhook_url,
    CASE WHEN webhook_url IS NOT NULL THEN now() END
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[],
    $9::float8[], $10::float8[], $11::float8[], $12::float8[], $13::bigint[], $14::integer[], $15::boolean[],
    $16::float8[], $17::text[]
) AS found (
    pattern_id, project_id, metric_name, kind, direction, window_size, window_start, dimensions,
    value, mean, expected, sigmas, events, windows, seasonal, detected_at, webhook_url
)
ON CONFLICT DO NOTHING
RETURNING pattern_id
