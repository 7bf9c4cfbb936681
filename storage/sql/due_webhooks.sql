-- Whoever crashes before it says how the attempt ended leaves it due again after the lease.
UPDATE patterns
SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $2)
WHERE pattern_id IN (
    SELECT pattern_id FROM patterns
    WHERE delivery = 'pending' AND next_attempt_at <= now()
    ORDER BY next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
RETURNING attempts, webhook_url, pattern_columns
