"""The catalogue of metrics: each one once, with its kind, sentence, labels and buckets.

They are updated per request, per batch or at the scrape, never per event. Labels have few values: routes,
statuses, codes of the error table, shards; never a project, a key or anything that a client chose.
"""

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metric(NamedTuple):
    """`name` without the suffix `_total` that counters get in the exposition."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


HTTP_REQUESTS = Metric("analytics_http_requests", "counter", "Requests answered.", ("route", "status"))
HTTP_SECONDS = Metric(
    "analytics_http_request_seconds",
    "histogram",
    "Time from a request's headers to its answer, in seconds.",
    ("route",),
    LATENCY_BUCKETS_S,
)
BODY_BYTES = Metric(
    "analytics_http_body_bytes", "counter", "Bytes of request bodies, as sent and after inflating.", ("form",)
)
EVENTS = Metric("analytics_events", "counter", "Events answered, by outcome.", ("outcome",))
REJECTIONS = Metric("analytics_event_rejections", "counter", "Events refused at the door, by reason.", ("code",))
ACKS = Metric("analytics_acks", "counter", "Write requests answered 202, by where their events were safe.", ("ack",))
INFLIGHT_BYTES = Metric("analytics_gateway_inflight_bytes", "gauge", "Bytes of events taken and not yet answered.")
SPOOL_BYTES = Metric("analytics_spool_bytes", "gauge", "Bytes in the gateway's spool.")
SPOOL_BATCHES = Metric("analytics_spool_batches", "gauge", "Batches in the gateway's spool.")

QUERIES = Metric("analytics_sql_queries", "counter", "SQL queries, by outcome or an error's code.", ("outcome",))
QUERY_SECONDS = Metric(
    "analytics_sql_query_seconds",
    "histogram",
    "Time of an SQL query from its turn to its answer, in seconds.",
    (),
    (*LATENCY_BUCKETS_S, 20.0, 30.0, 60.0),
)
QUERY_FILES = Metric("analytics_sql_query_files", "counter", "Files of the lake that SQL queries were run over.")
QUERY_BYTES = Metric("analytics_sql_query_read_bytes", "counter", "Bytes that SQL queries have read of files.")

GATEWAY_METRICS = (
    HTTP_REQUESTS,
    HTTP_SECONDS,
    BODY_BYTES,
    EVENTS,
    REJECTIONS,
    ACKS,
    INFLIGHT_BYTES,
    SPOOL_BYTES,
    SPOOL_BATCHES,
    QUERIES,
    QUERY_SECONDS,
    QUERY_FILES,
    QUERY_BYTES,
)
"""Kept by each gateway worker."""

SHARD_GAUGES = {
    "open_partitions": Metric("analytics_shard_open_partitions", "gauge", "Partitions ready for appends.", ("shard",)),
    "waiting_events": Metric("analytics_shard_waiting_events", "gauge", "Events that wait for an append.", ("shard",)),
    "waiting_bytes": Metric("analytics_shard_waiting_bytes", "gauge", "Bytes that wait for an append.", ("shard",)),
    "lag_events": Metric("analytics_shard_lag_events", "gauge", "Events in the log, not yet stored.", ("shard",)),
    "lag_s": Metric("analytics_shard_lag_seconds", "gauge", "Age of the oldest event not yet stored.", ("shard",)),
    "log_bytes": Metric("analytics_shard_log_bytes", "gauge", "Bytes in the log, not yet stored.", ("shard",)),
    "resident_bytes": Metric("analytics_shard_resident_bytes", "gauge", "Log payload kept in memory.", ("shard",)),
    "window_ids": Metric("analytics_shard_window_ids", "gauge", "Ids in the dedupe windows.", ("shard",)),
    "window_bytes": Metric("analytics_shard_window_bytes", "gauge", "Bytes of the dedupe windows.", ("shard",)),
}
"""By the field of a batcher's snapshot that they are read from, at the scrape."""

SHARD_COUNTERS = {
    "records_appended": Metric("analytics_log_records", "counter", "Records appended to the log.", ("shard",)),
    "batches_appended": Metric("analytics_log_batches", "counter", "Batches in those records.", ("shard",)),
    "bytes_appended": Metric("analytics_log_bytes", "counter", "Bytes appended to the log.", ("shard",)),
    "events_appended": Metric("analytics_log_events", "counter", "Events appended, duplicates too.", ("shard",)),
    "events_duplicate": Metric("analytics_log_duplicates", "counter", "Events that were duplicates.", ("shard",)),
    "writes": Metric("analytics_store_writes", "counter", "Transactions of the event store.", ("shard",)),
    "write_seconds": Metric("analytics_store_write_seconds", "counter", "Time spent in them.", ("shard",)),
    "write_failures": Metric("analytics_store_write_failures", "counter", "Transactions that failed.", ("shard",)),
    "events_stored": Metric("analytics_store_events", "counter", "Events stored in PostgreSQL.", ("shard",)),
    "events_dead_lettered": Metric("analytics_dead_letters", "counter", "Events that became dead letters.", ("shard",)),
    "events_aggregated": Metric("analytics_aggregated_events", "counter", "Events only aggregated.", ("shard",)),
    "events_overflowed": Metric(
        "analytics_aggregated_overflow", "counter", "Of those, in records of __other__: too many groups.", ("shard",)
    ),
    "events_lost": Metric("analytics_lost_events", "counter", "Events lost with the log, or set aside.", ("shard",)),
    "records_set_aside": Metric("analytics_set_aside_records", "counter", "Records of the log set aside.", ("shard",)),
    "log_losses": Metric("analytics_log_losses", "counter", "Times a partition's log state was lost.", ("shard",)),
    "store_losses": Metric(
        "analytics_store_losses", "counter", "Times PostgreSQL was found set back, by partition.", ("shard",)
    ),
}
"""By the name in the `counters` of a batcher's snapshot; they start at 0 with the actor."""

WINDOW_GAUGES = {
    "live_partitions": Metric("analytics_windows_live_partitions", "gauge", "Partitions that are counted.", ("shard",)),
    "lag_s": Metric("analytics_windows_lag_seconds", "gauge", "From receipt to being counted, lately.", ("shard",)),
    "watermark_ms": Metric("analytics_windows_watermark_ms", "gauge", "The latest receipt counted.", ("shard",)),
    "open_windows": Metric("analytics_windows_open", "gauge", "Windows that have not closed.", ("shard",)),
    "waiting_windows": Metric("analytics_windows_waiting", "gauge", "Closed ones, not yet rolled up.", ("shard",)),
    "resident_windows": Metric("analytics_windows_resident", "gauge", "Windows kept in memory.", ("shard",)),
    "resident_bytes": Metric("analytics_windows_resident_bytes", "gauge", "Bytes of those.", ("shard",)),
    "groups": Metric("analytics_windows_groups", "gauge", "Dimension tuples known in memory.", ("shard",)),
    "late_days_left": Metric("analytics_windows_late_days", "gauge", "Days to be counted again.", ("shard",)),
}
"""By the field of an aggregator's snapshot."""

WINDOW_COUNTERS = {
    "events_counted": Metric("analytics_windows_events", "counter", "Events counted in windows.", ("shard",)),
    "events_late": Metric("analytics_windows_late_events", "counter", "Events too late for windows.", ("shard",)),
    "overflow_events": Metric(
        "analytics_windows_overflow", "counter", "Events counted under __other__: too many groups.", ("shard",)
    ),
    "windows_published": Metric("analytics_windows_published", "counter", "Windows written to Redis.", ("shard",)),
    "windows_closed": Metric("analytics_windows_closed", "counter", "Windows that have closed.", ("shard",)),
    "windows_rolled_up": Metric("analytics_windows_rolled_up", "counter", "Roll-ups written.", ("shard",)),
    "days_recomputed": Metric("analytics_windows_recomputed_days", "counter", "Days counted again.", ("shard",)),
    "rebuilds": Metric("analytics_windows_rebuilds", "counter", "Partitions counted anew after a loss.", ("shard",)),
    "log_gaps": Metric(
        "analytics_windows_log_gaps", "counter", "Times the log had trimmed what was wanted.", ("shard",)
    ),
    "patterns_detected": Metric("analytics_patterns", "counter", "Patterns detected.", ("shard",)),
    "webhooks_delivered": Metric("analytics_webhooks_delivered", "counter", "Webhooks delivered.", ("shard",)),
    "webhooks_retried": Metric("analytics_webhooks_retried", "counter", "Tries that are to be repeated.", ("shard",)),
    "webhooks_given_up": Metric("analytics_webhooks_given_up", "counter", "Webhooks given up.", ("shard",)),
}
"""By the name in the `counters` of an aggregator's snapshot; they start at 0 with the actor."""

LAKE_GAUGES = {
    "lag_records": Metric(
        "analytics_lake_lag_records", "gauge", "Log records stored, not yet in the lake.", ("shard",)
    ),
    "held_s": Metric("analytics_lake_held_seconds", "gauge", "How long the oldest event held is held.", ("shard",)),
    "resident_bytes": Metric("analytics_lake_resident_bytes", "gauge", "Events that an exporter holds.", ("shard",)),
}
"""By the field of an exporter's snapshot."""

LAKE_COUNTERS = {
    "events_exported": Metric("analytics_lake_events", "counter", "Events in committed files.", ("shard",)),
    "files_written": Metric("analytics_lake_files", "counter", "Files committed.", ("shard",)),
    "bytes_written": Metric("analytics_lake_file_bytes", "counter", "Bytes of the files committed.", ("shard",)),
    "plans_committed": Metric("analytics_lake_plans", "counter", "Exports committed.", ("shard",)),
    "export_seconds": Metric("analytics_lake_export_seconds", "counter", "Time spent in exports.", ("shard",)),
    "retries": Metric("analytics_lake_retries", "counter", "Calls repeated, a service being away.", ("shard",)),
    "log_gaps": Metric("analytics_lake_log_gaps", "counter", "Times the log had trimmed what was wanted.", ("shard",)),
    "events_read_back": Metric("analytics_lake_read_back", "counter", "Events read from the event store.", ("shard",)),
    "files_adopted": Metric("analytics_lake_adopted_files", "counter", "Files of an earlier owner taken.", ("shard",)),
    "names_taken": Metric("analytics_lake_names_taken", "counter", "Foreign objects under a plan's name.", ("shard",)),
}
"""By the name in the `counters` of an exporter's snapshot; they start at 0 with the actor."""

KEEPER_GAUGES = {
    "hours_to_compact": Metric("analytics_lake_hours_to_compact", "gauge", "Hours with several small files."),
    "hours_set_aside": Metric("analytics_lake_hours_set_aside", "gauge", "Hours whose files could not be merged."),
    "strangers": Metric("analytics_lake_strangers", "gauge", "Objects that the manifest knows nothing of."),
    "last_retention_ms": Metric("analytics_retention_run_ms", "gauge", "When retention last came to its end."),
    "destinations": Metric("analytics_lake_destinations", "gauge", "Destinations that are served."),
    "destinations_failing": Metric("analytics_lake_failing_destinations", "gauge", "Those whose last try failed."),
    "last_run_ms": Metric("analytics_lake_keeper_run_ms", "gauge", "When the keeper last looked for work."),
}
"""By the field of the lake keeper's snapshot."""

KEEPER_COUNTERS = {
    "merges": Metric("analytics_lake_merges", "counter", "Times that small files became one."),
    "merges_refused": Metric("analytics_lake_merges_refused", "counter", "Times that files could not be merged."),
    "merges_given_up": Metric("analytics_lake_merges_given_up", "counter", "Merges that were begun in vain."),
    "merge_seconds": Metric("analytics_lake_merge_seconds", "counter", "Time spent in merges."),
    "files_merged": Metric("analytics_lake_merged_files", "counter", "Small files that became part of others."),
    "rows_merged": Metric("analytics_lake_merged_rows", "counter", "Rows in them."),
    "bytes_merged": Metric("analytics_lake_merged_bytes", "counter", "Bytes of them."),
    "files_removed": Metric("analytics_lake_removed_files", "counter", "Files removed after they were replaced."),
    "orphans_removed": Metric("analytics_lake_removed_orphans", "counter", "Objects removed that no plan finished."),
    "bytes_removed": Metric("analytics_lake_removed_bytes", "counter", "Bytes of all that was removed."),
    "files_moved": Metric("analytics_lake_cold_files", "counter", "Files that became cold."),
    "files_expired": Metric("analytics_lake_expired_files", "counter", "Files whose time was over."),
    "files_rewritten": Metric("analytics_lake_rewritten_files", "counter", "Files written without some projects."),
    "ageing_refused": Metric("analytics_lake_ageing_refused", "counter", "Files that could not grow old."),
    "retention_runs": Metric("analytics_retention_runs", "counter", "Runs of the retention that came to their end."),
    "retention_failures": Metric("analytics_retention_failures", "counter", "Runs that a service ended."),
    "days_dropped": Metric("analytics_retention_days", "counter", "Days of raw events that were dropped."),
    "events_expired": Metric("analytics_retention_events", "counter", "Raw events removed from PostgreSQL."),
    "records_expired": Metric("analytics_retention_records", "counter", "Roll-ups and other records removed."),
    "bytes_expired": Metric("analytics_retention_bytes", "counter", "Bytes that these took in PostgreSQL."),
    "deliveries": Metric("analytics_lake_deliveries", "counter", "Deliveries to destinations."),
    "delivery_failures": Metric("analytics_lake_failed_deliveries", "counter", "Tries of one that failed."),
    "files_delivered": Metric("analytics_lake_delivered_files", "counter", "Files put for destinations."),
    "rows_delivered": Metric("analytics_lake_delivered_rows", "counter", "Events in them."),
    "bytes_delivered": Metric("analytics_lake_delivered_bytes", "counter", "Bytes of them."),
    "retries": Metric("analytics_lake_keeper_retries", "counter", "Calls repeated, a service being away."),
}
"""By the name in the `counters` of the lake keeper's snapshot; they start at 0 with the actor."""

BATCH_GAUGES = {
    "job": Metric("analytics_batch_job", "gauge", "The batch job under way; 0 for none."),
    "workers": Metric("analytics_batch_workers", "gauge", "Ray tasks that work on it."),
}
"""By the field of what the driver of batch jobs says of itself."""

BATCH_COUNTERS = {
    "jobs": Metric("analytics_batch_jobs", "counter", "Batch jobs that have ended."),
    "workers_failed": Metric("analytics_batch_workers_failed", "counter", "Tasks of batch jobs that failed."),
    "batch_days": Metric("analytics_batch_days", "counter", "Days of projects in the jobs that have ended."),
    "batch_days_failed": Metric("analytics_batch_days_failed", "counter", "Those that could not be counted."),
    "batch_events": Metric("analytics_batch_events", "counter", "Events counted again."),
    "batch_rows": Metric("analytics_batch_rows", "counter", "Roll-ups of the days counted again."),
    "batch_changed": Metric("analytics_batch_changed_rows", "counter", "Roll-ups that were not as they should be."),
    "batch_seconds": Metric("analytics_batch_seconds", "counter", "Time spent in counting again."),
}
"""By the name in its `counters`; they start at 0 with the controller."""

SHARD_METRICS = (*SHARD_GAUGES.values(), *SHARD_COUNTERS.values())
WINDOW_METRICS = (*WINDOW_GAUGES.values(), *WINDOW_COUNTERS.values())
LAKE_METRICS = (*LAKE_GAUGES.values(), *LAKE_COUNTERS.values())
KEEPER_METRICS = (*KEEPER_GAUGES.values(), *KEEPER_COUNTERS.values())
BATCH_METRICS = (*BATCH_GAUGES.values(), *BATCH_COUNTERS.values())

CATALOGUE = (
    *(*GATEWAY_METRICS, *SHARD_METRICS, *WINDOW_METRICS),
    *(*LAKE_METRICS, *KEEPER_METRICS, *BATCH_METRICS),
)
