-- $1 days ahead. Today's partition (UTC, the server's clock) and those of the next days.
SELECT count(*) FILTER (WHERE events_log_add_day((now() AT TIME ZONE 'UTC')::date + ahead))
FROM generate_series(0, $1::integer) AS ahead
