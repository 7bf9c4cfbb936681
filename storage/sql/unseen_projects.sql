-- $1 client. Its projects that one of its destinations does not know as its own yet: destination, project, since when.
SELECT destination.destination_id, project.project_id, project.client_since
FROM projects AS project
JOIN lake_destinations AS destination
    ON destination.owner = 'client' AND destination.owner_id = $1
WHERE (project.client_id = $1 OR (project.client_id IS NULL AND project.project_id = $1))
    AND NOT EXISTS (
        SELECT FROM lake_destination_stretches AS stretch
        WHERE stretch.destination_id = destination.destination_id AND stretch.project_id = project.project_id
            AND stretch.until_offset IS NULL
    )
ORDER BY destination.destination_id, project.project_id
