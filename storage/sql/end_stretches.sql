-- $1 project, $2 offset: destinations of clients get the project's events up to there.
UPDATE lake_destination_stretches AS stretch
SET until_offset = greatest(stretch.next_offset, $2)
FROM lake_destinations AS destination
WHERE destination.destination_id = stretch.destination_id AND destination.owner = 'client'
    AND stretch.project_id = $1 AND stretch.until_offset IS NULL
