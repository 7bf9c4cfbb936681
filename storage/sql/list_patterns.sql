SELECT delivery, attempts, delivered_at, last_error, pattern_columns
FROM patterns
WHERE project_id = $1
    AND ($2::text IS NULL OR metric_name = $2)
    AND ($3::text IS NULL OR kind = $3)
    AND ($4::timestamptz IS NULL OR window_start >= $4)
    AND ($5::timestamptz IS NULL OR window_start < $5)
    AND ($6::timestamptz IS NULL OR (window_start, pattern_id) < ($6, $7::uuid))
ORDER BY window_start DESC, pattern_id DESC
LIMIT $8
