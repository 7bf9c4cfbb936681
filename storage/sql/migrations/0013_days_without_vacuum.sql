-- A day's rows are written once and leave with their table, mostly before their age asks for a vacuum: to vacuum it because
-- it was inserted into costs as much as to store it, and serves no query. It never came to its end either: every ten seconds
-- summarise_lookup.sql wants the same lock, and autovacuum gives way with the table's ANALYZE undone, which by itself is
-- short enough. Deleted rows and old transaction ids are vacuumed as in any table.
CREATE OR REPLACE FUNCTION events_log_add_day(day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition_name text := 'events_log_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('events_log_add_day'));
    IF to_regclass(partition_name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE %I (LIKE events_log INCLUDING ALL)'
        ' WITH (autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1)',
        partition_name
    );
    EXECUTE format(
        'ALTER TABLE events_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition_name, to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00'
    );
    RETURN true;
END
$$;

DO $$
DECLARE
    day regclass;
BEGIN
    FOR day IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events_log'::regclass LOOP
        EXECUTE format(
            'ALTER TABLE %s SET'
            ' (autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1)',
            day
        );
    END LOOP;
END
$$;
