"""`analytics-actors status`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.output import bytes_text, print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options


@click.command()
@server_options("admin")
@click.option("--partitions", is_flag=True, help="Also one line for each partition.")
@json_option
def status(api: Api, partitions: bool, as_json: bool) -> None:
    """Show gateways, shards and services as they are now.

    \b
    Examples:
      analytics-actors status
      analytics-actors status --json | jq '.shards[].view.lag_events'
    """
    answer = api.get("/v1/status")
    if as_json:
        print_json(answer)
        return
    services = [(name, state) for name, state in answer["services"].items()]
    print_table("services", ["service", "state"], services)
    print_table("gateways", _GATEWAY_COLUMNS, [_gateway_row(gateway) for gateway in answer["gateways"]])
    print_table("spools", _SPOOL_COLUMNS, [_spool_row(spool) for spool in answer["spools"]])
    print_table("shards", _SHARD_COLUMNS, [_shard_row(shard) for shard in answer["shards"]])
    aggregators = [shard["aggregator"] for shard in answer["shards"] if shard.get("aggregator")]
    if aggregators:
        print_table("aggregators", _AGGREGATOR_COLUMNS, [_aggregator_row(aggregator) for aggregator in aggregators])
    exporters = [shard["exporter"] for shard in answer["shards"] if shard.get("exporter")]
    if exporters:
        print_table("exporters", _EXPORTER_COLUMNS, [_exporter_row(exporter) for exporter in exporters])
    keeper = answer.get("lakeKeeper")
    if keeper:
        print_table("lake keeper", _KEEPER_COLUMNS, [_keeper_row(keeper)])
    if batching := answer.get("batching"):
        print_table("batching", _BATCHING_COLUMNS, [[batching[name] for name in _BATCHING]])
    if partitions:
        print_table("partitions", _PARTITION_COLUMNS, _partition_rows(answer["shards"]))
    for shard in answer["shards"]:
        if trouble := (shard.get("view") or {}).get("trouble"):
            click.echo(f"shard {shard['shard']} waits: {trouble}")
    for actor in [*aggregators, *exporters, *([keeper] if keeper else [])]:
        if trouble := (actor["view"] or {}).get("trouble"):
            click.echo(f"{actor['actor']} waits: {trouble}")


_GATEWAY_COLUMNS = ["#worker", "#pid", "#up s", "in flight", "lanes", "#silent s"]
_SPOOL_COLUMNS = ["spool", "#batches", "size", "#damaged", "trouble"]
_SHARD_COLUMNS = ["#shard", "state", "#pid", "partitions", "#queued", "#lag events", "#lag s", "log", "#restarts"]
_AGGREGATOR_COLUMNS = [
    *(
        "aggregator",
        "state",
        "#pid",
        "#live",
        "watermark",
        "#lag s",
        "#open windows",
        "#groups",
        "held",
        "#late events",
    ),
    *("#days to recount", "#restarts"),
]
_EXPORTER_COLUMNS = ["exporter", "state", "#pid", "#lag records", "held", "#plan", "#files", "#events", "#restarts"]
_KEEPER_COLUMNS = [
    *("keeper", "state", "#pid", "#hours to compact", "#merge", "#files merged", "merged", "#files removed", "removed"),
    *("#events expired", "#files cold", "#destinations", "#failing", "#restarts"),
]
_BATCHING = [
    *("eventsQueued", "eventsProcessed", "eventsAggregated", "eventsDropped", "eventsSampled", "batchesProcessed"),
    *("averageBatchSize", "databaseWrites", "writeReductionPercent"),
]
_BATCHING_COLUMNS = [
    *("#queued", "#processed", "#aggregated", "#dropped", "#sampled", "#batches", "#events a batch", "#writes"),
    "#fewer writes %",
]
_PARTITION_COLUMNS = ["#partition", "#shard", "state", "#epoch", "#next offset", "#checkpoint", "#lag events"]


def _gateway_row(gateway: Mapping[str, Any]) -> Sequence[Any]:
    lanes = " ".join(gateway["lanes"])
    return (
        gateway["worker"],
        str(gateway["pid"]),
        gateway["uptimeSeconds"],
        bytes_text(gateway["inflightBytes"]),
        lanes,
        gateway["silentSeconds"] or None,
    )


def _spool_row(spool: Mapping[str, Any]) -> Sequence[Any]:
    return (spool["spool"], spool["batches"], bytes_text(spool["bytes"]), spool["damaged"], spool.get("trouble", ""))


def _shard_row(shard: Mapping[str, Any]) -> Sequence[Any]:
    view = shard.get("view")
    restarts = shard.get("replaced", 0)
    if view is None:
        return (shard["shard"], shard["state"], None, None, None, None, None, None, restarts)
    return (
        shard["shard"],
        shard["state"],
        str(view["pid"]),
        ranges([partition["partition"] for partition in view["partitions"]]),
        view["waiting_events"],
        view["lag_events"],
        view["lag_s"],
        bytes_text(view["log_bytes"]),
        restarts,
    )


def _aggregator_row(aggregator: Mapping[str, Any]) -> Sequence[Any]:
    view = aggregator["view"]
    if view is None:
        return (aggregator["actor"], aggregator["state"], *[None] * 9, aggregator["replaced"])
    watermark_s = view["watermark_ms"] / 1000
    return (
        aggregator["actor"],
        aggregator["state"],
        str(view["pid"]),
        view["live_partitions"],
        datetime.fromtimestamp(watermark_s, UTC).strftime("%Y-%m-%d %H:%M:%S") if watermark_s else None,
        view["lag_s"],
        view["open_windows"],
        view["groups"],
        bytes_text(view["resident_bytes"]),
        view["late_events"],
        view["late_days_left"],
        aggregator["replaced"],
    )


def _exporter_row(exporter: Mapping[str, Any]) -> Sequence[Any]:
    view = exporter["view"]
    if view is None:
        return (exporter["actor"], exporter["state"], None, None, None, None, None, None, exporter["replaced"])
    counters = view["counters"]
    return (
        exporter["actor"],
        exporter["state"],
        str(view["pid"]),
        view["lag_records"],
        bytes_text(view["resident_bytes"]),
        view["open_plan"] or None,
        int(counters.get("files_written", 0)),
        int(counters.get("events_exported", 0)),
        exporter["replaced"],
    )


def _keeper_row(keeper: Mapping[str, Any]) -> Sequence[Any]:
    view = keeper["view"]
    if view is None:
        return (keeper["actor"], keeper["state"], *[None] * 11, keeper["replaced"])
    counters = view["counters"]
    return (
        keeper["actor"],
        keeper["state"],
        str(view["pid"]),
        view["hours_to_compact"],
        view["open_plan"] or None,
        int(counters.get("files_merged", 0)),
        bytes_text(counters.get("bytes_merged", 0)),
        int(counters.get("files_removed", 0) + counters.get("orphans_removed", 0)),
        bytes_text(counters.get("bytes_removed", 0)),
        int(counters.get("events_expired", 0)),
        int(counters.get("files_moved", 0)),
        view["destinations"],
        view["destinations_failing"],
        keeper["replaced"],
    )


def _partition_rows(shards: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[Any]]:
    for shard in shards:
        for p in (shard.get("view") or {}).get("partitions", []):
            row = (p["partition"], shard["shard"], p["state"], p["epoch"], p["next_offset"], p["checkpoint"])
            yield (*row, p["lag_events"])


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as people write them: 0-3 7 9-10."""
    parts = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        parts.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else f"{members[0]}")
    return " ".join(parts)
