-- The groups are gathered in one pass over the range: to sort the rows first, or to start workers for them, takes
-- longer than all the rest.
SELECT set_config('enable_sort', 'off', true), set_config('max_parallel_workers_per_gather', '0', true)
