"""The catalogue of `config.metrics` as prometheus_client objects, and the text that a scrape gets.

With several workers prometheus_client keeps its values in files of `PROMETHEUS_MULTIPROC_DIR`, which the
supervisor sets, and any worker answers for all of them.
"""

import os
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from config import metrics as catalogue
from config.metrics import Metric
from gateway.recent import Recent

SNAPSHOT_TTL_S = 1.0
"""A scraper that asks more often than this gets the shards' numbers of the last second again."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Answers:
    """Answers of one route and status that the collector has not been told of yet."""

    __slots__ = ("_bounds", "_by_bucket", "_counter", "_histogram", "_seconds")

    def __init__(self, counter: Counter, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._counter = counter
        self._histogram = histogram
        self._bounds = bounds
        self._by_bucket = [0] * (len(bounds) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._by_bucket[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def flush(self) -> None:
        total = sum(self._by_bucket)
        if not total:
            return
        self._counter.inc(total)
        # `observe` for many at once, which prometheus_client does not offer.
        self._histogram._sum.inc(self._seconds)
        for bucket, count in zip(self._histogram._buckets, self._by_bucket, strict=True):
            if count:
                bucket.inc(count)
        self._by_bucket = [0] * len(self._by_bucket)
        self._seconds = 0.0


class Metrics:
    """The metrics of one gateway worker.

    `request`, `body`, `acknowledged` and `rejected` are called once a request and only add numbers up: a counter
    that workers share takes a microsecond or two, and a request changes ten of them. `flush` tells them to the
    collector; until then a scrape does not see them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(catalogue.HTTP_REQUESTS)
        self._seconds = self._histogram(catalogue.HTTP_SECONDS)
        body_bytes = self._counter(catalogue.BODY_BYTES)
        self._sent_bytes, self._inflated_bytes = body_bytes.labels("sent"), body_bytes.labels("inflated")
        events = self._counter(catalogue.EVENTS)
        self._accepted, self._duplicate = events.labels("accepted"), events.labels("duplicate")
        self._rejected = events.labels("rejected")
        self._rejections = self._counter(catalogue.REJECTIONS)
        acks = self._counter(catalogue.ACKS)
        self._acks = {ack: acks.labels(ack) for ack in ("logged", "spooled", "stored")}
        self.inflight_bytes = self._gauge(catalogue.INFLIGHT_BYTES)
        self.spool_bytes = self._gauge(catalogue.SPOOL_BYTES)
        self.spool_batches = self._gauge(catalogue.SPOOL_BATCHES)
        self._queries = self._counter(catalogue.QUERIES)
        self._query_seconds = self._histogram(catalogue.QUERY_SECONDS)
        self._query_files = self._counter(catalogue.QUERY_FILES)
        self._query_bytes = self._counter(catalogue.QUERY_BYTES)
        self._answers: dict[tuple[str, int], _Answers] = {}
        self._added: dict[Counter, int] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """`route` is a pattern of the route table, never a path."""
        found = self._answers.get((route, status))
        if found is None:
            counter, histogram = self._requests.labels(route, str(status)), self._seconds.labels(route)
            found = self._answers[route, status] = _Answers(counter, histogram, catalogue.HTTP_SECONDS.buckets)
        found.add(seconds)

    def body(self, sent_bytes: int, inflated_bytes: int) -> None:
        self._add(self._sent_bytes, sent_bytes)
        self._add(self._inflated_bytes, inflated_bytes)

    def acknowledged(self, ack: str, *, accepted: int, duplicate: int) -> None:
        self._add(self._acks[ack], 1)
        self._add(self._accepted, accepted)
        if duplicate:
            self._add(self._duplicate, duplicate)

    def rejected(self, counts: Mapping[str, int]) -> None:
        """Refused events of one request, by code."""
        for code, count in counts.items():
            self._add(self._rejected, count)
            self._add(self._rejections.labels(code), count)

    def query(self, outcome: str, seconds: float) -> None:
        """One SQL query: "answered", or the code of its error."""
        self._queries.labels(outcome).inc()
        self._query_seconds.observe(seconds)

    def query_read(self, *, files: int, read_bytes: int) -> None:
        self._query_files.inc(files)
        self._query_bytes.inc(read_bytes)

    def flush(self) -> None:
        """Call it some times a second, and before a scrape."""
        for counter, count in self._added.items():
            counter.inc(count)
        self._added.clear()
        for answers in self._answers.values():
            answers.flush()

    def _add(self, counter: Counter, count: int) -> None:
        self._added[counter] = self._added.get(counter, 0) + count

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry, multiprocess_mode="livesum")

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets)


class Exposition:
    """What `GET /metrics` answers: this worker's (or all workers') metrics and those of the shards."""

    def __init__(
        self,
        metrics: Metrics,
        snapshot: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._snapshot = Recent(snapshot, ttl_s=SNAPSHOT_TTL_S)
        self._shards = _ViewCollector(catalogue.SHARD_GAUGES, catalogue.SHARD_COUNTERS)
        self._windows = _ViewCollector(catalogue.WINDOW_GAUGES, catalogue.WINDOW_COUNTERS)
        self._lake = _ViewCollector(catalogue.LAKE_GAUGES, catalogue.LAKE_COUNTERS)
        self._keeper = _ViewCollector(catalogue.KEEPER_GAUGES, catalogue.KEEPER_COUNTERS)
        self._batch = _ViewCollector(catalogue.BATCH_GAUGES, catalogue.BATCH_COUNTERS)
        self._metrics = metrics
        self._registry = metrics.registry
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        for views in (self._shards, self._windows, self._lake, self._keeper, self._batch):
            self._registry.register(views)
        self._registry.register(_WorkerProcesses(Path(folder) if folder else None))

    async def text(self) -> bytes:
        self._metrics.flush()
        snapshot = await self._snapshot.get()
        shards = snapshot["shards"]
        self._shards.views = [(str(row["shard"]), row["view"]) for row in shards if row["view"]]
        self._windows.views = _views_of(shards, "aggregator")
        self._lake.views = _views_of(shards, "exporter")
        keeper = snapshot.get("lakeKeeper")
        self._keeper.views = [("", keeper["view"])] if keeper and keeper["view"] else []
        batch = snapshot.get("batch")
        self._batch.views = [("", batch)] if batch else []
        return generate_latest(self._registry)


class _WorkerProcesses(Collector):
    """What the system knows of the process of each worker, by pid: whichever answers a scrape, a counter of one
    is not followed by that of another. `folder` has the files of live workers; without one there is only this."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Family]:
        families: dict[str, Family] = {}
        for pid in sorted(self._pids()):
            for found in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                family = families.setdefault(found.name, Family(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        return families.values()

    def _pids(self) -> set[int]:
        if self._folder is None:
            return {os.getpid()}
        return {int(path.stem.rpartition("_")[2]) for path in self._folder.glob("gauge_live*_*.db")}


def _views_of(shards: Iterable[Mapping[str, Any]], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """By shard, of those that have such an actor and whose actor answers."""
    actors = [(str(row["shard"]), row.get(kind)) for row in shards]
    return [(shard, actor["view"]) for shard, actor in actors if actor and actor["view"]]


class _ViewCollector(Collector):
    """Turns the snapshots of one kind of actor into samples: by shard, if the kind has one for each."""

    def __init__(self, gauges: Mapping[str, Metric], counters: Mapping[str, Metric]) -> None:
        self._gauges = gauges
        self._counters = counters
        self.views: Sequence[tuple[str, Mapping[str, Any]]] = ()

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        for field, metric in self._gauges.items():
            gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for shard, view in self.views:
                gauge.add_metric([shard] if metric.labels else [], view[field])
            yield gauge
        for name, metric in self._counters.items():
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for shard, view in self.views:
                counter.add_metric([shard] if metric.labels else [], view["counters"].get(name, 0))
            yield counter
