"""The fake of clients and destinations for unit tests; it passes the same contract suite as `PostgresDestinations`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

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
from storage.errors import Conflict, NotFound, Unavailable
from storage.fingerprint import partition_of
from storage.memory_manifest import KeptFile, MemoryManifest


@dataclass
class KeptStretch:
    project_id: str
    partition: int
    next_offset: int
    until_offset: int | None = None


@dataclass
class KeptDestination:
    destination: Destination
    status: DeliveryStatus
    stretches: list[KeptStretch] = field(default_factory=list)
    delivery: Delivery | None = None
    done: set[datetime] = field(default_factory=set)


@dataclass
class MemoryDestinations:
    """Over a `MemoryManifest`. A project that nobody has named is of itself, from the first record on."""

    manifest: MemoryManifest
    projects: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By project its client, and since which offset."""
    kept: dict[str, KeptDestination] = field(default_factory=dict)
    counted: Counter[tuple[str, str, date, str]] = field(default_factory=Counter)
    """Of destination, project, day and what is counted."""
    available: bool = True
    _numbers: int = 0

    def add_project(self, project_id: str, client_id: str | None = None) -> None:
        """What `Registry.create_project` does."""
        self.projects[project_id] = (client_id or project_id, 0)

    async def create(self, destination: Destination, *, since: Since = "now") -> None:
        if destination.destination_id in self.kept or self._is_taken(place_of(destination)):
            raise Conflict(f"there is a destination of the same owner at {destination.url} already, or of that id")
        begun = list(self._begun(destination))
        status = DeliveryStatus(self._now(), None, None, None, "", 0, 0, 0, 0, 0)
        stretches = [
            KeptStretch(project_id, partition, max(first, self._start(partition, since)))
            for project_id, partition, first in begun
        ]
        self.kept[destination.destination_id] = KeptDestination(destination, status, stretches)

    def _is_taken(self, place: tuple[str, ...]) -> bool:
        return any(place_of(kept.destination) == place for kept in self.kept.values())

    def _begun(self, destination: Destination) -> Iterator[tuple[str, int, int]]:
        match destination.owner:
            case "all":
                yield from ((ALL_PROJECTS, partition, 0) for partition in range(self.manifest.partitions))
            case "client":
                for project_id, (client_id, since) in self.projects.items():
                    if client_id == destination.owner_id:
                        yield project_id, self._partition(project_id), since
            case "project":
                if destination.owner_id not in self.projects:
                    raise NotFound(f"there is no project {destination.owner_id}")
                yield destination.owner_id, self._partition(destination.owner_id), 0

    def _start(self, partition: int, since: Since) -> int:
        if since == "beginning":
            return 0
        checkpoint = self.manifest.checkpoint(partition).next_offset
        if since == "now":
            return checkpoint
        exports = [each for each in self.manifest.exports if each.range.partition == partition]
        earlier = [each.range.next_offset for each in exports if each.at < since]
        return max(earlier, default=0 if exports else checkpoint)

    async def get(self, destination_id: str) -> Destination:
        return self._found(destination_id).destination

    async def listed(self, *, after: str = "", limit: int = 1000) -> list[Destination]:
        self._check()
        return [self.kept[name].destination for name in sorted(self.kept) if name > after][:limit]

    async def change(self, destination: Destination) -> None:
        kept = self._found(destination.destination_id)
        changed = replace(
            kept.destination,
            endpoint_url=destination.endpoint_url,
            region=destination.region,
            path_style=destination.path_style,
            credentials=destination.credentials,
            enabled=destination.enabled,
        )
        place = place_of(changed)
        if place != place_of(kept.destination) and self._is_taken(place):
            raise Conflict(f"there is a destination of the same owner at {changed.url} already")
        kept.destination = changed
        kept.status = kept.status._replace(failing_since=None)

    async def remove(self, destination_id: str) -> None:
        self._found(destination_id)
        del self.kept[destination_id]

    async def status(self, destination_id: str) -> DeliveryStatus:
        kept = self._found(destination_id)
        waiting = [
            Stretch(each.project_id, each.partition, each.next_offset, each.until_offset or 1 << 62)
            for each in kept.stretches
        ]
        pending = sum(1 for file in self.manifest.live() if any(_holds(file, stretch) for stretch in waiting))
        open_delivery = kept.delivery.delivery_id if kept.delivery else 0
        return kept.status._replace(pending_files=pending, open_delivery=open_delivery)

    async def clients(self, project_ids: Sequence[str]) -> dict[str, str]:
        return {name: self.client_of(name) for name in project_ids if name in self.projects}

    async def set_client(self, project_id: str, client_id: str) -> None:
        self._check()
        if project_id not in self.projects:
            raise NotFound(f"there is no project {project_id}")
        if self.projects[project_id][0] == client_id:
            return
        [stored] = await self.manifest.store.checkpoints([self._partition(project_id)])
        self._see_projects()
        self.projects[project_id] = (client_id, stored.next_offset)
        for kept in self.kept.values():
            for each in kept.stretches:
                if kept.destination.owner == "client" and (each.project_id, each.until_offset) == (project_id, None):
                    each.until_offset = max(each.next_offset, stored.next_offset)
            _drop_ended(kept)
        self._see_projects()

    def _see_projects(self) -> None:
        for kept in self.kept.values():
            if kept.destination.owner == "client":
                known = {each.project_id for each in kept.stretches if each.until_offset is None}
                for project_id, partition, since in self._begun(kept.destination):
                    if project_id not in known:
                        kept.stretches.append(KeptStretch(project_id, partition, since))

    async def begin(self, destination_id: str) -> Delivery | None:
        self._check()
        kept = self.kept.get(destination_id)
        if kept is None or not kept.destination.enabled:
            return None
        if kept.delivery is None:
            self._see_projects()
            waiting = sorted(self._waiting(kept), key=lambda each: (each.partition, each.project_id, each.first_offset))
            if not waiting:
                kept.status = kept.status._replace(fresh_at=self._now(), failing_since=None)
                return None
            self._numbers += 1
            kept.delivery = Delivery(self._numbers, destination_id, self._now(), tuple(waiting))
            kept.done = set()
        return kept.delivery

    def _waiting(self, kept: KeptDestination) -> Iterator[Stretch]:
        for each in kept.stretches:
            exported = self.manifest.checkpoint(each.partition).next_offset
            end = exported if each.until_offset is None else min(exported, each.until_offset)
            if each.next_offset < end:
                yield Stretch(each.project_id, each.partition, each.next_offset, end)

    async def hours(self, delivery_id: int) -> Sequence[datetime]:
        kept, files = self._of(delivery_id)
        return sorted({file.file.hour for file in files} - kept.done) if kept else []

    async def sources(self, delivery_id: int, hour: datetime) -> Sequence[Source]:
        _, files = self._of(delivery_id)
        return [Source(f.file.key, f.file.bytes, f.file.checksum) for f in files if f.file.hour == hour]

    def _of(self, delivery_id: int) -> tuple[KeptDestination | None, Sequence[KeptFile]]:
        self._check()
        kept = self._delivering(delivery_id)
        if kept is None or kept.delivery is None:
            return None, []
        stretches = kept.delivery.stretches
        return kept, [file for file in self.manifest.live() if any(_holds(file, each) for each in stretches)]

    async def record(self, delivery_id: int, delivered: Delivered) -> None:
        self._check()
        kept = self._delivering(delivery_id)
        if kept is None or delivered.hour in kept.done:
            return
        kept.done.add(delivered.hour)
        now, rows, status = self._now(), sum(delivered.rows.values()), kept.status
        kept.status = status._replace(
            files=status.files + bool(rows),
            rows=status.rows + rows,
            bytes=status.bytes + delivered.bytes,
            delivered_at=now if rows else status.delivered_at,
            failing_since=None,
        )
        for project_id, of_project in delivered.rows.items():
            counts = {"files": 1, "rows": of_project, "bytes": delivered.shares[project_id]}
            for what, count in counts.items():
                self.counted[kept.destination.destination_id, project_id, now.date(), what] += count

    async def finish(self, delivery_id: int) -> None:
        self._check()
        kept = self._delivering(delivery_id)
        if kept is None or kept.delivery is None:
            return
        for done in kept.delivery.stretches:
            for each in kept.stretches:
                if (each.project_id, each.partition, each.next_offset) == done[:3] and each.until_offset != done[2]:
                    each.next_offset = done.next_offset
        _drop_ended(kept)
        kept.status = kept.status._replace(fresh_at=kept.delivery.created_at, failing_since=None)
        kept.delivery = None

    async def failed(self, destination_id: str, error: str) -> None:
        self._check()
        kept = self.kept.get(destination_id)
        if kept is not None:
            since = kept.status.failing_since or self._now()
            kept.status = kept.status._replace(failing_since=since, last_error=error)

    async def volumes(
        self,
        *,
        destination_id: str | None = None,
        client_id: str | None = None,
        project_id: str | None = None,
        start: date | None = None,
        end: date | None = None,
    ) -> Sequence[DeliveredVolume]:
        found = [
            DeliveredVolume(
                to, project, self.client_of(project), day, *(self.counted[to, project, day, what] for what in _COUNTS)
            )
            for to, project, day in sorted({key[:3] for key in self.counted})
        ]
        return [
            each
            for each in found
            if destination_id in (None, each.destination_id)
            and client_id in (None, each.client_id)
            and project_id in (None, each.project_id)
            and (start is None or each.day >= start)
            and (end is None or each.day < end)
        ]

    def client_of(self, project_id: str) -> str:
        return self.projects.get(project_id, (project_id, 0))[0]

    def _delivering(self, delivery_id: int) -> KeptDestination | None:
        open_ones = (kept for kept in self.kept.values() if kept.delivery is not None)
        return next((kept for kept in open_ones if kept.delivery and kept.delivery.delivery_id == delivery_id), None)

    def _found(self, destination_id: str) -> KeptDestination:
        self._check()
        if destination_id not in self.kept:
            raise NotFound(f"there is no destination {destination_id}")
        return self.kept[destination_id]

    def _check(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")

    def _partition(self, project_id: str) -> int:
        return partition_of(project_id, self.manifest.partitions)

    def _now(self) -> datetime:
        return self.manifest.clock().astimezone(UTC)


_COUNTS = ("files", "rows", "bytes")


def _holds(kept: KeptFile, stretch: Stretch) -> bool:
    return (stretch.project_id == ALL_PROJECTS or stretch.project_id in kept.file.projects) and any(
        each.partition == stretch.partition
        and each.next_offset > stretch.first_offset
        and each.first_offset < stretch.next_offset
        for each in kept.file.ranges
    )


def _drop_ended(kept: KeptDestination) -> None:
    kept.stretches = [
        each for each in kept.stretches if each.until_offset is None or each.next_offset < each.until_offset
    ]
