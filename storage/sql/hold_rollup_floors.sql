-- $1 partitions, $2 epoch, $3 next_offset. Whether nothing counted so far may be written; locked, so that no floor rises
-- until what is written now is there, and can be removed.
SELECT partition_id, (epoch, next_offset) > ($2::bigint, $3::bigint) AS is_above
FROM rollup_floors
WHERE partition_id = ANY($1::smallint[])
ORDER BY partition_id
FOR SHARE
