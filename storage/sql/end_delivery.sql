-- $1 delivery.
DELETE FROM lake_deliveries
WHERE delivery_id = $1
RETURNING delivery_id, destination_id, created_at, project_ids, partition_ids, first_offsets, next_offsets
