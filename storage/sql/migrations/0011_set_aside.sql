-- Records of the partition log that cannot be read, and that somebody has decided to go without. The law is in
-- storage/set_aside.py. `counts` is null when the record does not even tell how many events it has; stepped_over_at is set
-- by the transaction that moves the event store's checkpoint over the record, recounted_at when the windows hold nothing of
-- it any more.
CREATE TABLE set_aside_records (
    log_offset bigint NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    stepped_over_at timestamptz,
    recounted_at timestamptz,
    partition_id smallint NOT NULL,
    reason text NOT NULL,
    counts jsonb,
    raw bytea NOT NULL,
    PRIMARY KEY (partition_id, log_offset)
);

CREATE INDEX set_aside_records_open ON set_aside_records (partition_id) WHERE recounted_at IS NULL;
