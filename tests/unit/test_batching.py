"""The batching guide's figures are sums over the shards."""

from typing import Any

import msgspec

from gateway.batching import Batching, batching_of


def test_shards_are_summed_and_those_that_do_not_answer_left_out() -> None:
    first = {"events_appended": 900.0, "writes": 9.0, "events_stored": 700.0, "events_aggregated": 150.0}
    second = {"events_appended": 100.0, "writes": 1.0, "events_dead_lettered": 50.0, "events_lost": 3.0}
    shards: list[dict[str, Any]] = [{"view": {"counters": first}}, {"view": {"counters": second}}, {"view": None}]
    assert msgspec.to_builtins(batching_of(shards)) == {
        "eventsQueued": 1000,
        "eventsProcessed": 900,
        "batchesProcessed": 10,
        "eventsDropped": 3,
        "eventsSampled": 0,
        "eventsAggregated": 150,
        "averageBatchSize": 90.0,
        "databaseWrites": 10,
        "writeReductionPercent": 99.0,
    }


def test_before_the_first_event_all_is_zero() -> None:
    assert batching_of([]) == batching_of([{"view": {"counters": {}}}]) == Batching()


def test_more_writes_than_events_are_told_as_they_are() -> None:
    counters = {"events_appended": 10.0, "writes": 12.0}
    assert batching_of([{"view": {"counters": counters}}]).write_reduction_percent == -20.0
