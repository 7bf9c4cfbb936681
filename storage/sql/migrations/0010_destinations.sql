-- Clients, and where their events are delivered to. The law is in storage/destinations.py.

-- A project is of one client, of itself when client_id is null, from the record `client_since` of its partition's log on.
ALTER TABLE projects
    ADD COLUMN client_id text COLLATE "C" CHECK (client_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    ADD COLUMN client_since bigint NOT NULL DEFAULT 0;

CREATE INDEX projects_client ON projects (client_id) WHERE client_id IS NOT NULL;

-- What is to be delivered is looked for from an offset on.
CREATE INDEX lake_file_ranges_next ON lake_file_ranges (partition_id, next_offset);

-- `credentials` is the name of a profile that whoever runs the system has set up; no secret is kept here. What was
-- exported before fresh_at is delivered.
CREATE TABLE lake_destinations (
    created_at timestamptz NOT NULL DEFAULT now(),
    fresh_at timestamptz,
    delivered_at timestamptz,
    failing_since timestamptz,
    files bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    enabled boolean NOT NULL DEFAULT true,
    path_style boolean NOT NULL DEFAULT false,
    destination_id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL CHECK (owner IN ('project', 'client', 'all')),
    owner_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('client', 'backup')),
    url text NOT NULL,
    endpoint_url text NOT NULL DEFAULT '',
    region text NOT NULL DEFAULT '',
    credentials text NOT NULL DEFAULT '',
    last_error text NOT NULL DEFAULT '',
    UNIQUE (url, endpoint_url, owner, owner_id)
) WITH (fillfactor = 70);

-- Up to where a project's events are delivered, '' being all projects of the partition: those of the records
-- [next_offset, until_offset) are not; until_offset is null where there is no end.
CREATE TABLE lake_destination_stretches (
    first_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    until_offset bigint,
    partition_id smallint NOT NULL,
    destination_id text COLLATE "C" NOT NULL REFERENCES lake_destinations ON DELETE CASCADE,
    project_id varchar(100) COLLATE "C" NOT NULL,
    PRIMARY KEY (destination_id, project_id, partition_id, first_offset)
) WITH (fillfactor = 70);

CREATE INDEX lake_destination_stretches_project ON lake_destination_stretches (project_id);

-- What is being delivered, in arrays of one length: of each destination one delivery at most. The objects are named
-- after it.
CREATE TABLE lake_deliveries (
    delivery_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    destination_id text COLLATE "C" NOT NULL UNIQUE REFERENCES lake_destinations ON DELETE CASCADE,
    project_ids varchar(100)[] COLLATE "C" NOT NULL,
    partition_ids smallint[] NOT NULL,
    first_offsets bigint[] NOT NULL,
    next_offsets bigint[] NOT NULL
);

-- The hours that are done of a delivery under way.
CREATE TABLE lake_delivery_hours (
    delivery_id bigint NOT NULL REFERENCES lake_deliveries ON DELETE CASCADE,
    hour timestamptz NOT NULL,
    PRIMARY KEY (delivery_id, hour)
);

-- Delivered on a UTC day, for billing; kept when the destination is not. A file of several projects counts for each.
CREATE TABLE lake_delivery_volumes (
    day date NOT NULL,
    files bigint NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    destination_id text COLLATE "C" NOT NULL,
    project_id varchar(100) COLLATE "C" NOT NULL,
    PRIMARY KEY (destination_id, project_id, day)
) WITH (fillfactor = 70);

CREATE INDEX lake_delivery_volumes_project ON lake_delivery_volumes (project_id, day);

-- The stored events with the documents' columns of the export: said by the checkpoint and the ranges that were
-- exported, not by a mark in each row. The client is the event's own, which its domain would tell, or its project's.
CREATE OR REPLACE VIEW events_export AS
SELECT
    hashtextextended(e.event_id, hashtextextended(e.project_id, 0)) & 9223372036854775807 AS id,
    e."timestamp",
    e.received_at,
    e.created_at,
    e.log_offset,
    e.partition_id,
    e.project_id,
    e.event_id,
    e.event_type,
    e.user_id,
    e.anonymous_id,
    e.session_id,
    e.site_id,
    coalesce(e.client_id, p.client_id, e.project_id)::varchar(100) AS client_id,
    e.properties,
    e.context,
    e.visitor_id,
    e.data,
    e.event_data,
    e.url,
    e.path,
    e.user_agent,
    e.ip_address,
    e.batch_id,
    e.raw_event_data,
    CASE WHEN e.log_offset < c.next_offset THEN 'exported' ELSE 'pending' END AS export_status,
    x.exported_at AS processed_at
FROM events_log AS e
LEFT JOIN checkpoints AS c ON c.sink = 'lake' AND c.partition_id = e.partition_id
LEFT JOIN LATERAL (
    SELECT lake_exports.exported_at
    FROM lake_exports
    WHERE lake_exports.partition_id = e.partition_id AND lake_exports.next_offset > e.log_offset
    ORDER BY lake_exports.next_offset
    LIMIT 1
) AS x ON true
LEFT JOIN projects AS p ON p.project_id = e.project_id;

-- The documents' queries name events_log: with this schema first on the search_path they run as they are written.
CREATE SCHEMA documented;

CREATE VIEW documented.events_log AS SELECT * FROM public.events_export;
