-- Columns of whole records; what is there of their keys is locked and was merged into them.
INSERT INTO aggregated_events (
    project_id, minute, metric_name, event_type, shape, late, dimensions_hash, partition_id, events, first_offset,
    next_offset, received_at, dimensions, dimension_names, count, sum, minimum, maximum, mean, unique_count, p50, p90,
    p95, p99, state
)
SELECT
    project_id, to_timestamp(minute), metric_name, event_type, shape, late, dimensions_hash, partition_id, events,
    first_offset, next_offset, to_timestamp(received_ms / 1000.0), dimensions::jsonb,
    ARRAY(SELECT jsonb_array_elements_text(names::jsonb)), count, sum, minimum, maximum, mean, unique_count, p50, p90,
    p95, p99, state
FROM unnest(
    $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::boolean[], $7::bigint[], $8::smallint[],
    $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::bigint[],
    $16::numeric[], $17::double precision[], $18::double precision[], $19::double precision[], $20::bigint[],
    $21::double precision[], $22::double precision[], $23::double precision[], $24::double precision[], $25::bytea[]
) AS record (
    project_id, minute, metric_name, event_type, shape, late, dimensions_hash, partition_id, events, first_offset,
    next_offset, received_ms, dimensions, names, count, sum, minimum, maximum, mean, unique_count, p50, p90, p95, p99,
    state
)
ON CONFLICT (project_id, minute, metric_name, event_type, shape, late, dimensions_hash) DO UPDATE
SET events = excluded.events,
    first_offset = excluded.first_offset,
    next_offset = excluded.next_offset,
    received_at = excluded.received_at,
    count = excluded.count,
    sum = excluded.sum,
    minimum = excluded.minimum,
    maximum = excluded.maximum,
    mean = excluded.mean,
    unique_count = excluded.unique_count,
    p50 = excluded.p50,
    p90 = excluded.p90,
    p95 = excluded.p95,
    p99 = excluded.p99,
    state = excluded.state
