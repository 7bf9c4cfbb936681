-- $1 projects, $2 metrics, $3 types, $4 granularities, $5 starts (seconds since the epoch), $6 hashes, $7 values,
-- $8 dimensions as JSON objects, NULL for the total, $9 counts, $10 sums, $11 minima, $12 maxima, $13 sketches,
-- $14 epoch, $15 next_offset, $16 whether they are recomputed.
-- In the order of the key, so that no two writers wait for each other. What was counted further stays as it is, and
-- what was recomputed is changed by recomputing alone, which writes only what differs and tells how many rows did.
-- (Sketches of percentiles are random: for the same values they differ.)
WITH written AS (
    INSERT INTO metric_aggregates AS kept (
        project_id, metric_name, metric_type, time_granularity, "timestamp", dimensions_hash, value, dimensions,
        dimension_names, count, sum, minimum, maximum, sketches, epoch, next_offset, recomputed
    )
    SELECT
        project_id, metric_name, metric_type, time_granularity, to_timestamp(start), dimensions_hash, value,
        coalesce(dimensions::jsonb, '{}'),
        CASE
            WHEN dimensions IS NULL THEN '{}'
            ELSE (
                SELECT array_agg(name ORDER BY place)
                FROM json_object_keys(dimensions::json) WITH ORDINALITY AS names (name, place)
            )
        END,
        count, sum, minimum, maximum, sketches, $14, $15, $16
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::numeric[], $8::text[],
        $9::bigint[], $10::numeric[], $11::float8[], $12::float8[], $13::bytea[]
    ) AS rolled (
        project_id, metric_name, metric_type, time_granularity, start, dimensions_hash, value, dimensions, count, sum,
        minimum, maximum, sketches
    )
    ORDER BY project_id COLLATE "C", metric_name COLLATE "C", time_granularity COLLATE "C", start, dimensions_hash
    ON CONFLICT (project_id, metric_name, time_granularity, "timestamp", dimensions_hash) DO UPDATE
    SET metric_type = excluded.metric_type,
        value = excluded.value,
        count = excluded.count,
        sum = excluded.sum,
        minimum = excluded.minimum,
        maximum = excluded.maximum,
        sketches = excluded.sketches,
        epoch = excluded.epoch,
        next_offset = excluded.next_offset,
        recomputed = excluded.recomputed,
        created_at = excluded.created_at
    WHERE CASE
        WHEN excluded.recomputed THEN
            NOT kept.recomputed
            OR (kept.metric_type, kept.count, kept.sum, kept.minimum, kept.maximum, kept.dimension_names)
                IS DISTINCT FROM (
                    excluded.metric_type, excluded.count, excluded.sum, excluded.minimum, excluded.maximum,
                    excluded.dimension_names
                )
            OR CASE
                WHEN excluded.metric_type LIKE 'p%' THEN (kept.sketches IS NULL) <> (excluded.sketches IS NULL)
                ELSE (kept.value, kept.sketches) IS DISTINCT FROM (excluded.value, excluded.sketches)
            END
        ELSE NOT kept.recomputed AND (kept.epoch, kept.next_offset) <= (excluded.epoch, excluded.next_offset)
    END
    RETURNING
        old.project_id IS NULL
        OR (old.metric_type, old.count, old.sum, old.minimum, old.maximum, old.dimension_names)
            IS DISTINCT FROM (new.metric_type, new.count, new.sum, new.minimum, new.maximum, new.dimension_names)
        OR CASE
            WHEN new.metric_type LIKE 'p%' THEN (old.sketches IS NULL) <> (new.sketches IS NULL)
            ELSE (old.value, old.sketches) IS DISTINCT FROM (new.value, new.sketches)
        END AS changed
)
SELECT count(*) FILTER (WHERE changed) FROM written
