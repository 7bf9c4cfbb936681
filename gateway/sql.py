"""The service of SQL queries in one worker: put together here, closed by the stack that is given."""

from contextlib import AsyncExitStack
from pathlib import Path

from config.settings import Settings
from gateway.metrics import Metrics
from gateway.sql_queries import SqlQueries
from storage.lake_cache import CACHE
from storage.object_store import ObjectStore, open_object_store
from storage.postgres import Postgres
from storage.postgres_lake_snapshots import PostgresLakeSnapshots

QUERIES = "queries"
"""A folder under the data folder, and so on one disk with the cache."""


def open_sql(settings: Settings, metrics: Metrics, stack: AsyncExitStack, *, worker: int) -> SqlQueries:
    """Connects to nothing yet. PostgreSQL's connections are its own: a snapshot may hold one for a while."""
    data = Path(settings.data).absolute()
    postgres = Postgres(
        settings.store.postgres_url,
        owner=f"gateway-{worker}-sql",
        pool_size=settings.query.concurrency,
        deadline_s=settings.query.deadline_s,
        connect_timeout_s=settings.store.connect_timeout_s,
    )
    stack.push_async_callback(postgres.close)

    def open_objects() -> ObjectStore:
        return open_object_store(settings.lake, data=data)

    queries = SqlQueries(
        settings.query,
        PostgresLakeSnapshots(postgres, partitions=settings.log.partitions),
        open_objects,
        metrics,
        cache=data / CACHE,
        folder=data / QUERIES / f"worker-{worker}",
    )
    stack.push_async_callback(queries.close)
    return queries
