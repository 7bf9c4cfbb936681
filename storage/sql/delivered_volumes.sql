-- $1 destination, $2 client, $3 project, each or NULL; $4 and $5 days or NULL.
SELECT
    volume.destination_id,
    volume.project_id,
    coalesce(project.client_id, volume.project_id) AS client_id,
    volume.day,
    volume.files,
    volume.rows,
    volume.bytes
FROM lake_delivery_volumes AS volume
LEFT JOIN projects AS project ON project.project_id = volume.project_id
WHERE ($1::text IS NULL OR volume.destination_id = $1)
    AND ($2::text IS NULL OR coalesce(project.client_id, volume.project_id) = $2)
    AND ($3::text IS NULL OR volume.project_id = $3)
    AND ($4::date IS NULL OR volume.day >= $4)
    AND ($5::date IS NULL OR volume.day < $5)
ORDER BY volume.destination_id, volume.project_id, volume.day
