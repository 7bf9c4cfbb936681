-- $1 the partitions of a claim, whose checkpoints are locked.
UPDATE lake_plans
SET state = 'cancelled', ended_at = now()
WHERE state = 'open' AND kind = 'export' AND partition_ids && $1::smallint[] AND NOT partition_ids <@ $1::smallint[]
