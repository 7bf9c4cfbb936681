-- Days counted again from all stored events: who does it, what was counted, and the daily job.

-- Whoever begins to count a day again takes a ticket, and only the holder of the last one may write (FN-1).
CREATE SEQUENCE recount_tickets;
ALTER TABLE recomputed_days RENAME COLUMN epoch TO ticket;
ALTER TABLE recomputed_days RENAME CONSTRAINT recomputed_days_epoch_not_null TO recomputed_days_ticket_not_null;
-- Whether the daily job has counted the day since it was last recomputed.
ALTER TABLE recomputed_days ADD COLUMN audited boolean NOT NULL DEFAULT false;
CREATE INDEX recomputed_days_due ON recomputed_days (day) WHERE NOT audited;

-- With which metrics of their own the days of a project were counted again, in the words of
-- analytics_actors/windows/definition_book.py.
CREATE TABLE counted_days (
    project_id varchar(100) COLLATE "C" NOT NULL,
    day date NOT NULL,
    built text NOT NULL,
    PRIMARY KEY (project_id, day)
);

-- When a metric got the definition that it has: windows count it since then.
ALTER TABLE metric_definitions ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now();

-- Jobs that count whole days again. A daily one is named by its day, so that it is there once.
CREATE TABLE batch_jobs (
    job_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('daily', 'command', 'backfill')),
    daily date UNIQUE,
    first_day date,
    last_day date,
    project_id varchar(100) COLLATE "C",
    metric_name varchar(100) COLLATE "C",
    dry_run boolean NOT NULL DEFAULT false,
    state text COLLATE "C" NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'incomplete')),
    days_open bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz,
    CHECK ((kind = 'daily') = (daily IS NOT NULL))
);

CREATE INDEX batch_jobs_open ON batch_jobs (job_id) WHERE state IN ('waiting', 'running');

-- What is counted in one go: the same days of some projects. `turn` counts how often it was begun: who was given an
-- earlier turn reports nothing any more.
CREATE TABLE batch_pieces (
    job_id bigint NOT NULL REFERENCES batch_jobs ON DELETE CASCADE,
    piece integer NOT NULL,
    first_day date NOT NULL,
    last_day date NOT NULL,
    turn integer NOT NULL DEFAULT 0,
    state text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'running', 'done', 'failed')),
    not_before timestamptz NOT NULL DEFAULT now(),
    events bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    superseded boolean NOT NULL DEFAULT false,
    worker text COLLATE "C",
    error text,
    projects text[] NOT NULL,
    PRIMARY KEY (job_id, piece)
) WITH (fillfactor = 80);
