-- The daily partitions of events_log, oldest first, and their size with all indexes.
SELECT to_date(right(day.relname, 8), 'YYYYMMDD') AS day, pg_total_relation_size(day.oid) AS bytes
FROM pg_inherits
JOIN pg_class AS day ON day.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = 'events_log'::regclass
ORDER BY day
