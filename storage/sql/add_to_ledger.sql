-- $1 projects, $2 hours since the epoch, $3 to $9 counts. In one order, so that no two writers wait for each other.
INSERT INTO ledger (project_id, hour, received, stored, duplicate, dead_lettered, rejected, lost, aggregated)
SELECT project_id, to_timestamp(hour * 3600.0), received, stored, duplicate, dead_lettered, rejected, lost,
    aggregated
FROM unnest(
    $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
    $9::bigint[]
) AS added (project_id, hour, received, stored, duplicate, dead_lettered, rejected, lost, aggregated)
ORDER BY project_id COLLATE "C", hour
ON CONFLICT (project_id, hour) DO UPDATE
SET received = ledger.received + excluded.received,
    stored = ledger.stored + excluded.stored,
    duplicate = ledger.duplicate + excluded.duplicate,
    dead_lettered = ledger.dead_lettered + excluded.dead_lettered,
    rejected = ledger.rejected + excluded.rejected,
    lost = ledger.lost + excluded.lost,
    aggregated = ledger.aggregated + excluded.aggregated
