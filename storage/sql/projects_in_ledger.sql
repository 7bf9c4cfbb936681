-- The projects that have rows in the ledger: from each to the next by the index, however many hours each has.
WITH RECURSIVE found AS (
    SELECT min(project_id) AS project_id FROM ledger
    UNION ALL
    SELECT (SELECT min(ledger.project_id) FROM ledger WHERE ledger.project_id > found.project_id)
    FROM found
    WHERE found.project_id IS NOT NULL
)
SELECT project_id
FROM found
WHERE project_id IS NOT NULL
