"""What of the stored events is in the lake, for those who the events belong to. `PostgresLakeExports` and
`MemoryLakeExports` both keep this contract; what the lake itself needs is `storage.lake_listing`.

The law:
- A project of None is all projects together. Of a file that holds several projects, rows and bytes are the project's
  own: its bytes are its share of the file's (`storage.lake_manifest.byte_shares`), so that those of
  all projects add up.
- An overview is one moment: the rows of its totals, without bounds, and its pending events are together the events that
  are stored (ND-1), unless some have been removed from the one place and not from the other.
- Each call ends at its deadline.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, NamedTuple, Protocol

import msgspec

from storage.lake_manifest import Tier

COUNTED_EVENTS = 100_000
"""Pending events are counted up to here: they are looked up one by one, and after an outage there are many."""
ROW_GROUP_ROWS = 128 * 1024
"""`storage.lake_file.ROW_GROUP_ROWS`, for those who must not load Parquet."""


class InvalidExportCursor(ValueError):
    """Not a cursor that this server made."""


class ExportedFile(NamedTuple):
    """A live file. It overlaps the time range that was asked for; its times may go beyond."""

    file_id: int
    key: str
    hour: datetime
    rows: int
    bytes: int
    min_timestamp: datetime
    max_timestamp: datetime
    tier: Tier
    created_at: datetime


class ExportedTotals(NamedTuple):
    files: int
    rows: int
    bytes: int
    cold_files: int
    cold_bytes: int
    first_hour: datetime | None
    last_hour: datetime | None


class Backlog(NamedTuple):
    """Stored and not in files: by the event store's checkpoints and the lake's."""

    records: int
    """Of the log, in the partitions that are asked about; other projects' are among them."""
    events: int
    complete: bool
    """False when there are more than `COUNTED_EVENTS`."""


class ExportOverview(NamedTuple):
    totals: ExportedTotals
    """Of live files that overlap the time range."""
    pending: Backlog
    """At any time."""
    last_export_at: datetime | None
    """The last commit that had records of the project's partition."""
    fresh_at: datetime | None
    """What was stored before is in files."""


class EventFile(NamedTuple):
    """Where in the lake an event is."""

    key: str
    row_group: int | None
    """None when the file would have to be opened to know."""
    exported_at: datetime | None
    """None when that was so long ago that it is forgotten."""


class LakeExports(Protocol):
    async def files(
        self,
        *,
        project_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        after: tuple[datetime, int] | None = None,
        limit: int = 100,
    ) -> list[ExportedFile]:
        """Of hours that overlap [start, end), by hour and file_id; `after` the last one of the page before."""

    async def overview(
        self, *, project_id: str | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> ExportOverview: ...

    async def file_of(self, partition: int, offset: int, timestamp: datetime) -> EventFile | None:
        """The live file with the event that stands there in the log; None when it is in none."""


def row_group_of(key: str, rows: int) -> int | None:
    """Parts are cut into groups of `ROW_GROUP_ROWS`: a small one has one group."""
    is_part = key.rpartition("/")[2].startswith("part-")
    return 0 if is_part and rows <= ROW_GROUP_ROWS else None


class PartitionState(NamedTuple):
    """Of a partition with anything stored."""

    partition: int
    exported_below: int
    stored_below: int
    since: datetime | None
    last_export_at: datetime | None

    @property
    def behind(self) -> int:
        return max(0, self.stored_below - self.exported_below)


def fresh_at(states: Iterable[PartitionState]) -> datetime | None:
    """None when a partition says nothing, or there is none."""
    times = [state.since for state in states]
    known = [time for time in times if time is not None]
    return min(known) if known and len(known) == len(times) else None


def encode_cursor(file: ExportedFile) -> str:
    return urlsafe_b64encode(msgspec.json.encode((file.hour, file.file_id))).decode().rstrip("=")


_cursor_decoder = msgspec.json.Decoder(
    tuple[Annotated[datetime, msgspec.Meta(tz=True)], Annotated[int, msgspec.Meta(ge=0)]]
)


def decode_cursor(cursor: str) -> tuple[datetime, int]:
    """Raises `InvalidExportCursor`."""
    try:
        return _cursor_decoder.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidExportCursor("the cursor is not one that this server made") from error
