"""Clients, and destinations: buckets and folders of theirs that the lake's events are delivered to.
`PostgresDestinations` and `MemoryDestinations` both keep this contract; `analytics_actors.lake.delivery` delivers.

The law:
- A project is of one client: of the one it was given, else of itself. Events belong to the client that their project
  was of when they were stored: `set_client` takes effect at one offset of the project's partition, up to which the
  former client's destinations get the events, and from which on the new one's do.
- A destination is of a project, of a client (all its projects, also those that come to it later), or of all projects.
  What it is to get is kept in stretches of offsets: of each project, or, where all projects are meant, of each
  partition. The stretches of a project never overlap, and `finish` alone moves them on.
- What is delivered is what the lake has: the live files hold each event below the lake's checkpoint once, whatever
  was merged, moved or replaced meanwhile. So a delivery is offsets, and not files: which files hold them is asked
  when they are read.
- A destination has one open delivery at most. `begin` gives the one that is open, with the same offsets, else a new
  one up to the lake's checkpoints. Its number is used once. An hour that was `record`ed is not asked for again.
- Two that deliver the same at once both put the same; `record` and `finish` count once.
- Volumes are counted by `record`, on the day of the delivery, and stay when the destination is gone.
- `Unavailable` leaves the outcome unknown; every operation but `create` may be repeated. Each call is one transaction
  and ends at its deadline.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from storage.lake_manifest import OffsetRange
from storage.object_store import ObjectStore, s3_parts

Owner = Literal["project", "client", "all"]
DestinationKind = Literal["client", "backup"]
DeliveryState = Literal["ok", "behind", "failing", "disabled"]
Since = datetime | Literal["beginning", "now"]
"""What was exported to the lake from then on is delivered."""

ALL_PROJECTS = ""
"""The project of a stretch that is of every project of its partition."""


@dataclass(frozen=True)
class Destination:
    """Where to, and whose events. Secrets are not here: `credentials` is the name of a profile of the AWS
    configuration on the machines of the system, empty for the credentials that the system itself has."""

    destination_id: str
    owner: Owner
    owner_id: str
    """Empty with all projects."""
    kind: DestinationKind
    url: str
    endpoint_url: str = ""
    region: str = ""
    path_style: bool = False
    credentials: str = ""
    enabled: bool = True


OpenPlace = Callable[[Destination], Awaitable[ObjectStore]]
"""Opens the object store of a destination, to be closed by the caller. Raises `Misconfigured` for a place where no
destination may be."""


class DeliveryStatus(NamedTuple):
    """How far a destination is, at one moment."""

    created_at: datetime
    fresh_at: datetime | None
    """What was exported to the lake before is delivered."""
    delivered_at: datetime | None
    """When a file was last delivered."""
    failing_since: datetime | None
    last_error: str
    """Of the present failure, or the last one."""
    files: int
    rows: int
    bytes: int
    """Delivered in all."""
    pending_files: int
    """Live files of the lake with offsets that are not delivered yet."""
    open_delivery: int
    """0 for none."""


class Stretch(NamedTuple):
    """The events of a project, or of all projects, among the records [first_offset, next_offset) of a partition."""

    project_id: str
    partition: int
    first_offset: int
    next_offset: int


class Delivery(NamedTuple):
    delivery_id: int
    destination_id: str
    created_at: datetime
    stretches: tuple[Stretch, ...]

    @property
    def ranges(self) -> list[OffsetRange]:
        """What its files are of."""
        return sorted({OffsetRange(*each[1:]) for each in self.stretches})


class Source(NamedTuple):
    """A live file of the lake with events of a delivery."""

    key: str
    bytes: int
    checksum: str


class Delivered(NamedTuple):
    """What was put for one hour; rows and bytes by project, none when the hour held nothing of the destination's."""

    hour: datetime
    bytes: int
    rows: Mapping[str, int]
    shares: Mapping[str, int]
    """Of the file's bytes."""


class DeliveredVolume(NamedTuple):
    destination_id: str
    project_id: str
    client_id: str
    """The project's, as it is now."""
    day: date
    files: int
    rows: int
    bytes: int


class Destinations(Protocol):
    async def create(self, destination: Destination, *, since: Since = "now") -> None:
        """Raises `NotFound` when there is no such project, and `Conflict` for an id that is taken, or for a second
        one of the same owner at the same place (`place_of`): its events would be there twice."""

    async def get(self, destination_id: str) -> Destination:
        """Raises `NotFound`."""

    async def listed(self, *, after: str = "", limit: int = 1000) -> list[Destination]:
        """By id; `after` the last one of the page before."""

    async def change(self, destination: Destination) -> None:
        """Where it is and whether it is enabled; owner, kind and url stay. Its trouble is forgotten. Raises
        `NotFound`, and `Conflict` when it would come to another one's place."""

    async def remove(self, destination_id: str) -> None:
        """What was delivered stays where it is. Raises `NotFound`."""

    async def status(self, destination_id: str) -> DeliveryStatus:
        """Raises `NotFound`."""

    async def clients(self, project_ids: Sequence[str]) -> Mapping[str, str]:
        """Of whom these projects are now; those that there are not are left out."""

    async def set_client(self, project_id: str, client_id: str) -> None:
        """From now on. Raises `NotFound`."""

    async def begin(self, destination_id: str) -> Delivery | None:
        """None when there is nothing to deliver, or the destination is disabled or gone."""

    async def hours(self, delivery_id: int) -> Sequence[datetime]:
        """Hours with live files that may hold events of the delivery, in their order, without those recorded."""

    async def sources(self, delivery_id: int, hour: datetime) -> Sequence[Source]:
        """The live files that together hold what the delivery has of the hour, at one moment. Their objects stay for
        the lake's grace period."""

    async def record(self, delivery_id: int, delivered: Delivered) -> None:
        """An hour is done."""

    async def finish(self, delivery_id: int) -> None:
        """All its hours are done: the next delivery begins where this one ends."""

    async def failed(self, destination_id: str, error: str) -> None:
        """A try to deliver has failed; `record` and `finish` say that one has not."""

    async def volumes(
        self,
        *,
        destination_id: str | None = None,
        client_id: str | None = None,
        project_id: str | None = None,
        start: date | None = None,
        end: date | None = None,
    ) -> Sequence[DeliveredVolume]:
        """Delivered from `start` to before `end`, by destination, project and day."""


def place_of(destination: Destination) -> tuple[str, ...]:
    """Where it is and whose events it gets, the same however the place is written: one destination is there at most."""
    owner = (destination.owner, destination.owner_id)
    try:
        url = urlsplit(destination.url)
        if url.scheme == "file":
            return (*owner, "file", os.path.normpath(f"/{unquote(url.path).strip('/')}"))
        return (*owner, url.scheme, *s3_parts(destination.endpoint_url, url))
    except ValueError:
        # Nothing can be delivered there.
        return (*owner, destination.url, destination.endpoint_url)


def state_of(destination: Destination, status: DeliveryStatus, *, now: datetime, behind_s: float) -> DeliveryState:
    """A destination that fails is behind when it has failed for long; so is one that is merely slow."""
    if not destination.enabled:
        return "disabled"
    fresh_at = status.fresh_at or status.created_at
    if status.pending_files and now - fresh_at > timedelta(seconds=behind_s):
        return "behind"
    return "failing" if status.failing_since is not None else "ok"
