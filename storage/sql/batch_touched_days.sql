-- Days that late events have touched and the daily job has not counted since, or that wait for their recomputation.
SELECT touched.project_id, touched.day, coalesce(counted.built, '') AS built
FROM (
    SELECT project_id, day FROM recomputed_days WHERE NOT audited
    UNION
    SELECT project_id, day FROM late_days
) AS touched
LEFT JOIN counted_days AS counted USING (project_id, day)
ORDER BY touched.day, touched.project_id COLLATE "C"
