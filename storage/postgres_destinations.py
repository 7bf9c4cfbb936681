"""Clients and destinations in PostgreSQL. The law is `storage.destinations`'s.

What changes whose events a destination gets (a project's client, a new destination, a client's new project) is done
one after another, under one lock, which is taken before any row is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from storage.destinations import (
    ALL_PROJECTS,
    Delivered,
    DeliveredVolume,
    Delivery,
    DeliveryStatus,
    Destination,
    Since,
    Source,
    Stretch,
    place_of,
)
from storage.errors import Conflict, NotFound
from storage.fingerprint import partition_of
from storage.postgres import Connection, Postgres
from storage.registry import check_client_id
from storage.statements import statement

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('lake_destinations'))"
_OF_OWNER = """
SELECT url, endpoint_url FROM lake_destinations WHERE owner = $1 AND owner_id = $2 AND destination_id <> $3
"""
_INSERT = statement("insert_destination")
_LIST = statement("list_destinations")
_CHANGE = statement("change_destination")
_REMOVE = "DELETE FROM lake_destinations WHERE destination_id = $1 RETURNING destination_id"
_STATUS = statement("destination_status")
_STARTS = statement("lake_starts")
_CHECKPOINTS = "SELECT partition_id, next_offset FROM checkpoints WHERE sink = 'lake' AND partition_id = ANY($1)"
_STORED = "SELECT next_offset FROM checkpoints WHERE sink = 'event_store' AND partition_id = $1"
_INSERT_STRETCHES = statement("insert_stretches")
_UNSEEN = statement("unseen_projects")
_PROJECT = "SELECT coalesce(client_id, project_id) FROM projects WHERE project_id = $1 FOR NO KEY UPDATE"
_CLIENTS = "SELECT project_id, coalesce(client_id, project_id) FROM projects WHERE project_id = ANY($1)"
_SET_CLIENT = "UPDATE projects SET client_id = $2, client_since = $3 WHERE project_id = $1"
_OF_CLIENT = """
SELECT project_id, client_since FROM projects
WHERE client_id = $1 OR (client_id IS NULL AND project_id = $1)
"""
_END_STRETCHES = statement("end_stretches")
_DROP_ENDED = "DELETE FROM lake_destination_stretches WHERE {} = $1 AND until_offset <= next_offset"
_LOCK_DESTINATION = """
SELECT owner, owner_id, enabled FROM lake_destinations WHERE destination_id = $1 FOR NO KEY UPDATE
"""
_OPEN = "SELECT * FROM lake_deliveries WHERE destination_id = $1"
_WAITING = statement("waiting_stretches")
_BEGIN = statement("begin_delivery")
_IS_FRESH = "UPDATE lake_destinations SET fresh_at = now(), failing_since = NULL WHERE destination_id = $1"
_HOURS = statement("delivery_hours")
_SOURCES = statement("delivery_sources")
_LOCK_DELIVERY = "SELECT destination_id FROM lake_deliveries WHERE delivery_id = $1 FOR UPDATE"
_INSERT_HOUR = """
INSERT INTO lake_delivery_hours (delivery_id, hour) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING hour
"""
_ADD_VOLUMES = statement("add_delivery_volumes")
_COUNT = statement("count_delivered")
_END = statement("end_delivery")
_MOVE = statement("move_stretches")
_FINISHED = "UPDATE lake_destinations SET fresh_at = $2, failing_since = NULL WHERE destination_id = $1"
_FAILED = """
UPDATE lake_destinations SET failing_since = coalesce(failing_since, now()), last_error = $2 WHERE destination_id = $1
"""
_VOLUMES = statement("delivered_volumes")


class PostgresDestinations:
    """`storage.destinations.Destinations`. Every call has the deadline of the `Postgres` it is given."""

    def __init__(self, postgres: Postgres, *, partitions: int) -> None:
        self._postgres = postgres
        self._partitions = partitions

    async def create(self, destination: Destination, *, since: Since = "now") -> None:
        async with self._postgres.transaction() as connection:
            await connection.execute(_LOCK)
            is_taken = await _is_taken(connection, destination)
            if is_taken or await connection.fetchrow(_INSERT, *_row(destination)) is None:
                raise Conflict(f"there is a destination of the same owner at {destination.url} already, or of that id")
            begun = await self._begun(connection, destination)
            starts = await _starts(connection, sorted({partition for _, partition, _ in begun}), since)
            stretches = [
                (project_id, partition, max(first, starts[partition])) for project_id, partition, first in begun
            ]
            await _insert_stretches(connection, destination.destination_id, stretches)

    async def _begun(self, connection: Connection, destination: Destination) -> list[tuple[str, int, int]]:
        """Project, partition, and from which offset on its events are of the destination's owner."""
        match destination.owner:
            case "all":
                return [(ALL_PROJECTS, partition, 0) for partition in range(self._partitions)]
            case "client":
                rows = await connection.fetch(_OF_CLIENT, destination.owner_id)
                return [(project_id, self._partition(project_id), since) for project_id, since in rows]
            case "project":
                if await connection.fetchval(_PROJECT, destination.owner_id) is None:
                    raise NotFound(f"there is no project {destination.owner_id}")
                return [(destination.owner_id, self._partition(destination.owner_id), 0)]

    def _partition(self, project_id: str) -> int:
        return partition_of(project_id, self._partitions)

    async def get(self, destination_id: str) -> Destination:
        async with self._postgres.session() as connection:
            row = await connection.fetchrow(_LIST, destination_id, "", 1)
        return Destination(*_found(row, destination_id))

    async def listed(self, *, after: str = "", limit: int = 1000) -> list[Destination]:
        async with self._postgres.session() as connection:
            return [Destination(*row) for row in await connection.fetch(_LIST, None, after, limit)]

    async def change(self, destination: Destination) -> None:
        where = (destination.endpoint_url, destination.region, destination.path_style, destination.credentials)
        async with self._postgres.transaction() as connection:
            await connection.execute(_LOCK)
            row = await connection.fetchrow(_LIST, destination.destination_id, "", 1)
            former = Destination(*_found(row, destination.destination_id))
            changed = replace(former, endpoint_url=destination.endpoint_url)
            if place_of(changed) != place_of(former) and await _is_taken(connection, changed):
                raise Conflict(f"there is a destination of the same owner at {changed.url} already")
            await connection.fetchrow(_CHANGE, destination.destination_id, *where, destination.enabled)

    async def remove(self, destination_id: str) -> None:
        async with self._postgres.session() as connection:
            _found(await connection.fetchrow(_REMOVE, destination_id), destination_id)

    async def status(self, destination_id: str) -> DeliveryStatus:
        async with self._postgres.session() as connection:
            return DeliveryStatus(*_found(await connection.fetchrow(_STATUS, destination_id), destination_id))

    async def clients(self, project_ids: Sequence[str]) -> dict[str, str]:
        async with self._postgres.session() as connection:
            return {row[0]: row[1] for row in await connection.fetch(_CLIENTS, project_ids)}

    async def set_client(self, project_id: str, client_id: str) -> None:
        check_client_id(client_id)
        partition = self._partition(project_id)
        async with self._postgres.transaction() as connection:
            await connection.execute(_LOCK)
            former = await connection.fetchval(_PROJECT, project_id)
            if former is None:
                raise NotFound(f"there is no project {project_id}")
            if former == client_id:
                return
            await self._see_projects(connection, former)
            since = await connection.fetchval(_STORED, partition) or 0
            await connection.execute(_SET_CLIENT, project_id, client_id, since)
            await connection.execute(_END_STRETCHES, project_id, since)
            await connection.execute(_DROP_ENDED.format("project_id"), project_id)
            await self._see_projects(connection, client_id)

    async def _see_projects(self, connection: Connection, client_id: str) -> None:
        """Let the client's destinations have its projects that were made since."""
        for destination_id, project_id, since in await connection.fetch(_UNSEEN, client_id):
            begun = [(project_id, self._partition(project_id), since)]
            await _insert_stretches(connection, destination_id, begun)

    async def begin(self, destination_id: str) -> Delivery | None:
        async with self._postgres.transaction() as connection:
            await connection.execute(_LOCK)
            found = await connection.fetchrow(_LOCK_DESTINATION, destination_id)
            if found is None or not found["enabled"]:
                return None
            begun = await connection.fetchrow(_OPEN, destination_id)
            if begun is not None:
                return _delivery(begun)
            if found["owner"] == "client":
                await self._see_projects(connection, found["owner_id"])
            waiting = [Stretch(*row) for row in await connection.fetch(_WAITING, destination_id)]
            if not waiting:
                await connection.execute(_IS_FRESH, destination_id)
                return None
            return _delivery(await connection.fetchrow(_BEGIN, destination_id, *_columns(waiting)))

    async def hours(self, delivery_id: int) -> list[datetime]:
        async with self._postgres.session() as connection:
            return [row["hour"] for row in await connection.fetch(_HOURS, delivery_id)]

    async def sources(self, delivery_id: int, hour: datetime) -> list[Source]:
        async with self._postgres.session() as connection:
            return [Source(*row) for row in await connection.fetch(_SOURCES, delivery_id, hour)]

    async def record(self, delivery_id: int, delivered: Delivered) -> None:
        async with self._postgres.transaction() as connection:
            destination_id = await connection.fetchval(_LOCK_DELIVERY, delivery_id)
            if destination_id is None:
                return
            if await connection.fetchval(_INSERT_HOUR, delivery_id, delivered.hour) is None:
                return
            rows = sum(delivered.rows.values())
            await connection.execute(_COUNT, destination_id, int(rows > 0), rows, delivered.bytes)
            await connection.execute(_ADD_VOLUMES, destination_id, *_volume_columns(delivered))

    async def finish(self, delivery_id: int) -> None:
        async with self._postgres.transaction() as connection:
            row = await connection.fetchrow(_END, delivery_id)
            if row is None:
                return
            delivery = _delivery(row)
            await connection.execute(_MOVE, delivery.destination_id, *_columns(delivery.stretches))
            await connection.execute(_DROP_ENDED.format("destination_id"), delivery.destination_id)
            await connection.execute(_FINISHED, delivery.destination_id, delivery.created_at)

    async def failed(self, destination_id: str, error: str) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_FAILED, destination_id, error)

    async def volumes(
        self,
        *,
        destination_id: str | None = None,
        client_id: str | None = None,
        project_id: str | None = None,
        start: date | None = None,
        end: date | None = None,
    ) -> Sequence[DeliveredVolume]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_VOLUMES, destination_id, client_id, project_id, start, end)
        return [DeliveredVolume(*row) for row in rows]


async def _starts(connection: Connection, partitions: Sequence[int], since: Since) -> Mapping[int, int]:
    """By partition the offset from which on there is something to deliver."""
    starts = dict.fromkeys(partitions, 0)
    if since == "beginning":
        return starts
    wanted = (_CHECKPOINTS, partitions) if since == "now" else (_STARTS, partitions, since)
    return starts | {row["partition_id"]: row["next_offset"] for row in await connection.fetch(*wanted)}


async def _is_taken(connection: Connection, destination: Destination) -> bool:
    """Whether the same owner has another one at the same place, which may be written otherwise. Under the lock."""
    found = await connection.fetch(_OF_OWNER, destination.owner, destination.owner_id, destination.destination_id)
    others = [replace(destination, url=row["url"], endpoint_url=row["endpoint_url"]) for row in found]
    return place_of(destination) in map(place_of, others)


async def _insert_stretches(
    connection: Connection, destination_id: str, stretches: Sequence[tuple[str, int, int]]
) -> None:
    if stretches:
        await connection.execute(_INSERT_STRETCHES, destination_id, *map(list, zip(*stretches, strict=True)))


def _row(destination: Destination) -> tuple[object, ...]:
    """In the order of insert_destination.sql."""
    return (
        destination.destination_id,
        destination.owner,
        destination.owner_id,
        destination.kind,
        destination.url,
        destination.endpoint_url,
        destination.region,
        destination.path_style,
        destination.credentials,
        destination.enabled,
    )


def _found(row: Any, destination_id: str) -> Any:
    if row is None:
        raise NotFound(f"there is no destination {destination_id}")
    return row


def _delivery(row: Any) -> Delivery:
    columns = (row["project_ids"], row["partition_ids"], row["first_offsets"], row["next_offsets"])
    stretches = tuple(Stretch(*each) for each in zip(*columns, strict=True))
    return Delivery(row["delivery_id"], row["destination_id"], row["created_at"], stretches)


def _columns(stretches: Sequence[Stretch]) -> list[list[Any]]:
    return [list(column) for column in zip(*stretches, strict=True)]


def _volume_columns(delivered: Delivered) -> tuple[list[str], list[int], list[int]]:
    projects = list(delivered.rows)
    return projects, list(delivered.rows.values()), [delivered.shares[project_id] for project_id in projects]
