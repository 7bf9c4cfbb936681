-- How far a partition's log was counted when roll-ups were last removed as counted no more: a row that is gone cannot say
-- it any more. Nothing that was counted less far is written since (FN-1, CK-1).
CREATE TABLE rollup_floors (
    partition_id smallint PRIMARY KEY,
    epoch bigint NOT NULL,
    next_offset bigint NOT NULL
);
