-- Summarises the page ranges of the last days that were filled since the last call; see migration 0002.
-- A summary stays although the statement is cancelled, so that a deadline only puts the rest off.
SELECT brin_summarize_new_values(lookup.inhrelid)
FROM pg_inherits AS lookup
JOIN pg_index AS leaf ON leaf.indexrelid = lookup.inhrelid
JOIN pg_class AS day ON day.oid = leaf.indrelid
WHERE lookup.inhparent = 'events_log_lookup'::regclass
    AND day.relname BETWEEN
        'events_log_' || to_char(now() AT TIME ZONE 'UTC' - interval '1 day', 'YYYYMMDD')
        AND 'events_log_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')
