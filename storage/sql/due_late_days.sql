-- $1 partitions, $2 seconds since the last mark, $3 seconds since the first, $4 most days to return.
SELECT project_id, day, version
FROM late_days
WHERE partition_id = ANY($1::smallint[])
    AND (last_marked <= clock_timestamp() - $2::float8 * interval '1 second'
        OR first_marked <= clock_timestamp() - $3::float8 * interval '1 second')
ORDER BY first_marked, project_id, day
LIMIT $4
