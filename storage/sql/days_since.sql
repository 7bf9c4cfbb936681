-- $1 milliseconds since the epoch. The daily partitions that hold what was stored since then, and their pages.
SELECT day.oid::regclass::text AS name, pg_relation_size(day.oid) / current_setting('block_size')::integer AS pages
FROM pg_inherits
JOIN pg_class AS day ON day.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = 'events_log'::regclass
    AND day.relname >= 'events_log_' || to_char(to_timestamp($1 / 1000.0) AT TIME ZONE 'UTC', 'YYYYMMDD')
ORDER BY day.relname
