-- $1 partitions, $2 time: from which offset on what was exported since then stands. What was exported longer ago than
-- is remembered counts as later, as far as anything of the partition was exported since.
SELECT
    wanted.partition_id,
    coalesce(
        (
            SELECT max(next_offset) FROM lake_exports
            WHERE lake_exports.partition_id = wanted.partition_id AND exported_at < $2
        ),
        CASE
            WHEN EXISTS (SELECT FROM lake_exports WHERE lake_exports.partition_id = wanted.partition_id) THEN 0
            ELSE checkpoints.next_offset
        END,
        0
    ) AS next_offset
FROM unnest($1::smallint[]) AS wanted (partition_id)
LEFT JOIN checkpoints ON checkpoints.sink = 'lake' AND checkpoints.partition_id = wanted.partition_id
