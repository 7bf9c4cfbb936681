-- Conservation counts (LG-1), written in the transaction that stores the events they count.
-- No index on the counters and room in the pages, so that updates stay within their page.

CREATE TABLE ledger (
    project_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    received bigint NOT NULL DEFAULT 0,
    stored bigint NOT NULL DEFAULT 0,
    duplicate bigint NOT NULL DEFAULT 0,
    dead_lettered bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    lost bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, hour)
) WITH (fillfactor = 70);
