"""Every setting of the system: its meaning, unit, default and bounds. Units are in the names.

Policy only: a `Settings` is frozen and knows nothing of where its values came from; `config.resolve`
reads them from a file, the environment and flags. Child processes and actors are handed the resolved
settings as JSON (`to_json`), so all of them run on exactly the same values.
"""

import os
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MIB = 1024 * 1024
GIB = 1024 * MIB

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Days = Annotated[int, Meta(ge=0, le=36500)]


def describe(text: str) -> Meta:
    return Meta(description=text)


def gateway_workers() -> int:
    """One for two processors that this process may use, at most four: actors and servers need the others, and each
    worker has connections to PostgreSQL of its own. A second one on two processors takes more than it gives."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, max(1, processors // 2))


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP edge."""

    host: Annotated[str, describe("address to listen on; anything but loopback is a decision")] = "127.0.0.1"
    port: Annotated[Port, describe("port to listen on; 0 takes any free one")] = 8080
    workers: Annotated[
        Positive, describe("gateway processes that share the port; default: one for two processors, at most four")
    ] = msgspec.field(default_factory=gateway_workers)
    max_body_bytes: Annotated[Positive, describe("largest request body as sent")] = 20 * MIB
    max_inflated_bytes: Annotated[Positive, describe("largest request body after decompression")] = 40 * MIB
    max_events_per_request: Annotated[Positive, describe("most events in one batch request")] = 10_000
    max_event_bytes: Annotated[Positive, describe("largest single event, as JSON")] = 1 * MIB
    max_depth: Annotated[Positive, describe("deepest nesting of properties and context")] = 32
    max_keys: Annotated[Positive, describe("most object keys in one event")] = 1000
    max_values: Annotated[Positive, describe("most values in one event, in its arrays and objects")] = 20_000
    max_key_chars: Annotated[Positive, describe("longest object key")] = 256
    max_string_chars: Annotated[Positive, describe("longest string inside properties and context")] = 256 * 1024
    max_event_age_s: Annotated[Seconds, describe("oldest timestamp that is taken without import")] = 30 * 86400.0
    max_event_ahead_s: Annotated[Seconds, describe("furthest timestamp in the future that is taken")] = 86400.0
    max_inflight_bytes: Annotated[Positive, describe("bytes of events that a worker holds unanswered")] = 64 * MIB
    max_shard_inflight_bytes: Annotated[Positive, describe("the same, towards one shard")] = 32 * MIB
    append_deadline_s: Annotated[Seconds, describe("after this the batch goes to the spool instead")] = 2.0
    stored_deadline_s: Annotated[Seconds, describe("longest wait of ?ack=stored")] = 10.0
    query_deadline_s: Annotated[Seconds, describe("longest database query of a read route")] = 10.0
    max_concurrent_queries: Annotated[
        Positive, describe("read queries at once per worker, of one project one fewer; more get 503")
    ] = 16
    decode_deadline_s: Annotated[
        Seconds, describe("a large request is inflated, and decoded, within this time or gets 503")
    ] = 10.0
    header_deadline_s: Annotated[Seconds, describe("a request's headers must be complete by then")] = 10.0
    body_deadline_s: Annotated[Seconds, describe("a request's body must be complete by then")] = 30.0
    max_header_bytes: Annotated[Positive, describe("largest request line and headers together")] = 16 * 1024
    max_headers: Annotated[Positive, describe("most headers in one request")] = 100
    max_connections: Annotated[Positive, describe("open connections per worker; more get 503")] = 4096
    drain_deadline_s: Annotated[Seconds, describe("on SIGTERM, time for requests in flight to finish")] = 10.0
    key_refresh_s: Annotated[Seconds, describe("a revoked key stops working within this time")] = 5.0
    negative_key_cache: Annotated[Positive, describe("unknown keys remembered per worker")] = 10_000
    negative_key_ttl_s: Annotated[Seconds, describe("how long an unknown key is remembered")] = 10.0
    query_origins: Annotated[list[str], describe("web origins that may read; write routes are open to all")] = []


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The partition log in Redis or Valkey, and the dedupe window decided over it."""

    redis_url: Annotated[str, describe("Redis or Valkey; empty starts the embedded one")] = ""
    partitions: Annotated[Positive, describe("fixed when the system is created")] = 64
    max_bytes: Annotated[Positive, describe("log bytes not yet stored; at the bound writers get 503")] = 1 * GIB
    dedupe_window_s: Annotated[Seconds, describe("an event id is remembered at least this long")] = 86400.0
    command_timeout_s: Annotated[Seconds, describe("deadline of one round trip to Redis")] = 5.0
    embedded_max_memory_bytes: Annotated[Positive, describe("maxmemory of the embedded Valkey")] = 3 * GIB


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The event store in PostgreSQL and the batcher that fills it."""

    postgres_url: Annotated[str, describe("PostgreSQL 18 or later; empty starts the embedded one")] = ""
    batch_size: Annotated[Positive, describe("waiting events that start a write when none is under way")] = 1000
    batch_interval_ms: Annotated[Positive, describe("an event waits at most this long, a tenth if no more come")] = 1000
    max_write_events: Annotated[Positive, describe("most events in a transaction; so many start one more")] = 10_000
    max_concurrent_writes: Annotated[Positive, describe("transactions at once per shard")] = 10
    write_timeout_seconds: Annotated[Seconds, describe("deadline of one transaction")] = 30.0
    max_resident_bytes: Annotated[Positive, describe("log payload a shard keeps in memory for its sinks")] = 64 * MIB
    partition_days_ahead: Annotated[Positive, describe("daily partitions created in advance")] = 3
    pool_size: Annotated[Positive, describe("connections per gateway worker for keys and queries")] = 4
    connect_timeout_s: Annotated[Seconds, describe("deadline of one connection attempt")] = 5.0


class SpoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway's own disk buffer for when the log cannot be reached."""

    directory: Annotated[str, describe("where spool and key cache lie; empty: <data>/gateway")] = ""
    max_bytes: Annotated[Positive, describe("bytes per gateway worker; beyond it writers get 503")] = 256 * MIB


class WindowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Windowed statistics: what the aggregators keep in Redis and roll up in PostgreSQL."""

    enabled: Annotated[bool, describe("run aggregators; without them metrics come from stored events only")] = True
    ttl_s: Annotated[int, Meta(ge=3 * 3600), describe("windows stay in Redis so long after their end")] = 86400
    publish_interval_ms: Annotated[Positive, describe("events are counted at most this much later")] = 300
    close_after_s: Annotated[Seconds, describe("a window is judged and rolled up so long after its end")] = 60.0
    recompute_quiet_s: Annotated[Seconds, describe("a day with late events is recomputed after so long a pause")] = 5.0
    recompute_wait_s: Annotated[Seconds, describe("and after this time even without a pause")] = 60.0
    max_groups: Annotated[Positive, describe("dimension tuples of one metric and hour; more are __other__")] = 1000
    max_resident_bytes: Annotated[Positive, describe("windows that an aggregator keeps in memory")] = 64 * MIB
    revenue_event_types: Annotated[list[str], describe("event types that the metric revenue sums")] = msgspec.field(
        default_factory=lambda: ["purchase"]
    )
    revenue_properties: Annotated[list[str], describe("where the amount stands; the first that is there counts")] = (
        msgspec.field(default_factory=lambda: ["amount", "value", "price"])
    )
    metrics: Annotated[
        list[dict[str, Any]], describe("further metrics of every project, as /v1/metrics-definitions takes them")
    ] = msgspec.field(default_factory=list)
    cache_ttl_s: Annotated[Positive, describe("answers over closed ranges are cached in Redis so long")] = 3600
    max_points: Annotated[Positive, describe("most points in one answer")] = 100_000
    webhook_hosts: Annotated[
        list[str], describe("hosts that pattern webhooks may be sent to: host, host:port or *.domain")
    ] = []
    webhook_deadline_s: Annotated[Seconds, describe("deadline of one webhook request")] = 5.0


class LakeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parquet files of all stored events, in a folder or an S3 bucket. Credentials of S3 are no settings: they come
    from the usual places of AWS clients (environment, profile, role of the machine)."""

    enabled: Annotated[bool, describe("write the stored events to Parquet files")] = True
    url: Annotated[str, describe("file:///folder or s3://bucket/prefix; empty: <data>/lake")] = ""
    endpoint_url: Annotated[str, describe("S3 server that is not Amazon's, as http(s)://host:port")] = ""
    region: Annotated[str, describe("region of the bucket")] = "us-east-1"
    path_style: Annotated[bool, describe("the bucket's name goes into the path and not into the host name")] = False
    profile: Annotated[str, describe("profile of the AWS configuration to use; empty: the usual places")] = ""
    server_side_encryption: Annotated[
        Literal["", "AES256", "aws:kms"], describe("encryption asked of S3 for each object; empty: the bucket's own")
    ] = ""
    request_timeout_s: Annotated[Seconds, describe("S3 may be silent for so long before a request is given up")] = 30.0
    part_bytes: Annotated[Positive, describe("events in memory that are written as files at once")] = 64 * MIB
    part_interval_s: Annotated[Seconds, describe("an event waits at most this long for its file")] = 60.0
    compression: Annotated[Literal["snappy", "zstd"], describe("compression of the columns")] = "snappy"
    max_resident_bytes: Annotated[Positive, describe("events that an exporter keeps in memory")] = 256 * MIB
    compact_below_bytes: Annotated[Positive, describe("smaller files of one hour become one")] = 128 * MIB
    compact_max_bytes: Annotated[Positive, describe("of at most this size together")] = 1 * GIB
    compact_quiet_s: Annotated[Seconds, describe("when the hour got no file for so long")] = 600.0
    compact_max_parts: Annotated[Positive, describe("or has more small files than this")] = 16
    keeper_interval_s: Annotated[Seconds, describe("an idle lake keeper looks for work this often")] = 60.0
    retired_grace_s: Annotated[Seconds, describe("files that were replaced stay this long, for readers")] = 3600.0
    orphan_grace_s: Annotated[Seconds, describe("objects that no export finished are removed after this")] = 86400.0
    orphan_interval_s: Annotated[Seconds, describe("how often the lake is looked through for them")] = 21600.0


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long what is kept, in days; 0 is for ever. Projects may have other limits of their own. With the lake
    nothing leaves PostgreSQL that is in no file of it, however old it is."""

    enabled: Annotated[bool, describe("remove what is older than it may be; it can be run by command all the same")] = (
        True
    )
    run_at: Annotated[
        str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$"), describe("when it runs each day, as HH:MM in UTC")
    ] = "03:30"
    raw_days: Annotated[Days, describe("raw events leave PostgreSQL so long after they were exported to the lake")] = 7
    raw_max_days: Annotated[
        Days, describe("and so long after they were stored at the latest, if exported; without a lake by this alone")
    ] = 30
    lake_hot_days: Annotated[Days, describe("files of older hours are moved to the lake's cold part")] = 30
    lake_cold_days: Annotated[Days, describe("and deleted so long after that; late imports later")] = 730
    cold_storage_class: Annotated[
        Literal["", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"],
        describe("storage class of S3 for the cold part; only classes that are read at once"),
    ] = ""
    rollup_days: Annotated[Days, describe("roll-ups of metrics, and records of events that are only aggregated")] = 1826
    pattern_days: Annotated[Days, describe("patterns that were detected, with what became of their webhooks")] = 365
    dead_letter_days: Annotated[Days, describe("events that could not be stored")] = 90
    history_days: Annotated[Days, describe("when the lake's exports, merges and recomputed days were made")] = 90
    audit_days: Annotated[Days, describe("what retention has removed when")] = 1826


class DestinationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Buckets and folders of clients, and a backup, that the lake's events are delivered to."""

    interval_s: Annotated[Seconds, describe("each gets what was exported since at this interval")] = 3600.0
    behind_s: Annotated[Seconds, describe("with events exported longer ago one is behind")] = 21600.0
    endpoint_hosts: Annotated[
        list[str], describe("S3 servers besides Amazon that destinations may be at: host, host:port or *.domain")
    ] = []
    folder: Annotated[str, describe("folders of destinations lie below this one; empty: none may be named")] = ""
    backup_url: Annotated[str, describe("a copy of all projects' events: file:///folder or s3://bucket/prefix")] = ""
    backup_endpoint_url: Annotated[str, describe("its S3 server, if that is not Amazon's")] = ""
    backup_region: Annotated[str, describe("region of its bucket")] = "us-east-1"
    backup_path_style: Annotated[bool, describe("its bucket's name goes into the path")] = False
    backup_profile: Annotated[str, describe("profile of the AWS configuration for it; empty: the usual places")] = ""


class BatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The daily job that counts the days again which late or imported events have touched, and jobs by command."""

    enabled: Annotated[bool, describe("run it each day; it can be run by command all the same")] = True
    run_at: Annotated[
        str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$"), describe("when it runs each day, as HH:MM in UTC")
    ] = "02:00"
    concurrency: Annotated[Positive, describe("tasks at once")] = 2
    task_budget_s: Annotated[Seconds, describe("a task takes further days for so long, then ends")] = 60.0
    piece_deadline_s: Annotated[Seconds, describe("a task is ended so long after that: its days are counted anew")] = (
        900.0
    )


class QuerySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SQL over the events of a project, each query in a process of its own. Bounds are those of one gateway worker."""

    concurrency: Annotated[Positive, describe("queries at once, of one project one fewer")] = 3
    queue: Annotated[int, Meta(ge=0), describe("queries that wait for their turn; more get 503")] = 8
    queue_wait_s: Annotated[Seconds, describe("a query waits at most this long for its turn, then gets 503")] = 10.0
    deadline_s: Annotated[Seconds, describe("after this a query's process is killed")] = 30.0
    memory_bytes: Annotated[int, Meta(ge=256 * MIB), describe("memory of one query's process, and its disk space")] = (
        1 * GIB
    )
    threads: Annotated[Positive, describe("threads of one query")] = 2
    max_rows: Annotated[Positive, describe("most rows in one answer; more are cut off")] = 10_000
    max_result_bytes: Annotated[Positive, describe("most bytes of rows in one answer; more are cut off")] = 16 * MIB
    warm_processes: Annotated[int, Meta(ge=0), describe("processes that wait for the next query")] = 1
    warm_idle_s: Annotated[Seconds, describe("and how long after the last one")] = 300.0
    cache_bytes: Annotated[Positive, describe("files of an S3 lake kept on this machine's disk")] = 2 * GIB


class ActorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ray and the actors on it."""

    ray_address: Annotated[
        str, Meta(pattern=r"^(.+:\d{1,5})?$"), describe("host:port of a running cluster; empty starts a local one")
    ] = ""
    namespace: Annotated[str, describe("Ray namespace of the actors")] = "analytics"
    shards: Annotated[Positive, describe("shards that the partitions are placed on")] = 1
    dashboard: Annotated[bool, describe("run the Ray dashboard")] = True
    dashboard_port: Annotated[Port, describe("port of the dashboard; 0 takes any free one")] = 0
    observe_interval_s: Annotated[Seconds, describe("how often the controller looks at each actor")] = 2.0
    unresponsive_after_s: Annotated[Seconds, describe("an actor silent for this long is replaced")] = 20.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings. `data` is the folder that embedded services, spool and connection.json live in."""

    data: Annotated[str, describe("folder of everything that is kept")] = "./data"
    gateway: GatewaySettings = GatewaySettings()
    log: LogSettings = LogSettings()
    store: StoreSettings = StoreSettings()
    spool: SpoolSettings = SpoolSettings()
    windows: WindowSettings = WindowSettings()
    lake: LakeSettings = LakeSettings()
    retention: RetentionSettings = RetentionSettings()
    destinations: DestinationSettings = DestinationSettings()
    batch: BatchSettings = BatchSettings()
    query: QuerySettings = QuerySettings()
    actors: ActorSettings = ActorSettings()

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> "Settings":
        return msgspec.json.decode(raw, type=cls)
