-- Patterns: what was detected in metrics, its delivery to webhooks, and how far each metric was judged.

-- pattern_id is a hash of project, metric, kind, window and dimensions, so that the same pattern found twice is one row.
-- A pending delivery is attempted when next_attempt_at has come, which every attempt moves on before it is made: who
-- crashes in an attempt has it made again.
CREATE TABLE patterns (
    pattern_id uuid PRIMARY KEY,
    window_start timestamptz NOT NULL,
    detected_at timestamptz NOT NULL,
    value double precision NOT NULL,
    mean double precision NOT NULL,
    expected double precision NOT NULL,
    sigmas double precision NOT NULL,
    events bigint NOT NULL,
    windows integer NOT NULL,
    seasonal boolean NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    metric_name varchar(100) COLLATE "C" NOT NULL,
    kind varchar(20) COLLATE "C" NOT NULL CHECK (kind IN ('spike', 'drop', 'anomaly', 'trend')),
    direction varchar(10) COLLATE "C" NOT NULL CHECK (direction IN ('up', 'down')),
    window_size varchar(10) COLLATE "C" NOT NULL CHECK (window_size IN ('1m', '5m', '1h')),
    dimensions jsonb NOT NULL,
    delivery varchar(20) COLLATE "C" NOT NULL CHECK (delivery IN ('none', 'pending', 'delivered', 'failed')),
    webhook_url text,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    delivered_at timestamptz,
    last_error text,
    CHECK ((delivery = 'none') = (webhook_url IS NULL))
) WITH (fillfactor = 90);

CREATE INDEX patterns_newest ON patterns (project_id, window_start, pattern_id);
CREATE INDEX patterns_pending ON patterns (next_attempt_at) WHERE delivery = 'pending';

-- The detector of a metric: windows before next_start were judged. Never moved back.
CREATE TABLE pattern_states (
    project_id varchar(100) COLLATE "C" NOT NULL,
    metric_name varchar(100) COLLATE "C" NOT NULL,
    next_start timestamptz NOT NULL,
    state jsonb NOT NULL,
    PRIMARY KEY (project_id, metric_name)
) WITH (fillfactor = 50);

-- What a project's webhooks are signed with. It must be known to sign, so it cannot be kept as a hash.
CREATE TABLE webhook_secrets (
    project_id text COLLATE "C" PRIMARY KEY REFERENCES projects,
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
