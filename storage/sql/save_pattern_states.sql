INSERT INTO pattern_states (project_id, metric_name, next_start, state)
SELECT project_id, metric_name, to_timestamp(next_start), state::jsonb
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS saved (project_id, metric_name, next_start, state)
-- In one order, so that two who save at the same time do not wait for each other in a circle.
ORDER BY project_id, metric_name
ON CONFLICT (project_id, metric_name) DO UPDATE SET next_start = excluded.next_start, state = excluded.state
WHERE pattern_states.next_start <= excluded.next_start
