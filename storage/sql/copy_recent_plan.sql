-- What was stored lately is found through the times of storing (events_log_lookup); and CSV's times are parsed as
-- ISO 8601.
SELECT set_config('enable_seqscan', 'off', true), set_config('datestyle', 'ISO', true)
