-- The index (project_id, "timestamp") is what serves; and CSV's times are parsed as ISO 8601.
SELECT set_config('enable_seqscan', 'off', true), set_config('datestyle', 'ISO', true)
