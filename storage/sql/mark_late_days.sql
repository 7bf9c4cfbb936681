-- $1 projects, $2 days since the epoch, $3 partitions. In one order, so that no two writers wait for each other.
INSERT INTO late_days (project_id, day, partition_id, version, first_marked, last_marked)
SELECT project_id, date '1970-01-01' + day, partition_id, nextval('late_day_versions'), clock_timestamp(), clock_timestamp()
FROM (
    SELECT project_id, day, partition_id
    FROM unnest($1::text[], $2::integer[], $3::smallint[]) AS marked (project_id, day, partition_id)
    ORDER BY project_id COLLATE "C", day
) AS marked
ON CONFLICT (project_id, day) DO UPDATE
SET version = excluded.version, last_marked = excluded.last_marked
