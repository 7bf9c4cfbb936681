-- $1 plan, $2 state.
UPDATE lake_plans SET state = $2, ended_at = now() WHERE plan_id = $1
