"""Files in the manifest's tables: written and read within a transaction of the caller."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from storage.errors import FormatError
from storage.lake_manifest import DIGEST_BITS, FileEntry, LakeFile, OffsetRange, byte_shares
from storage.postgres import Connection
from storage.statements import statement

_INSERT_FILES = statement("insert_lake_files")
_INSERT_RANGES = statement("insert_lake_ranges")
_INSERT_PROJECTS = statement("insert_lake_projects")
_ADD_VOLUMES = statement("add_lake_volumes")
_LOAD = statement("load_lake_files")


async def insert_files(connection: Connection, plan_id: int, files: Sequence[LakeFile]) -> None:
    """Make them live. Raises `FormatError` for a key or an offset that a live file has already."""
    if not files:
        return
    ids = await insert_names(connection, plan_id, files)
    ranges = [(ids[file.key], file.hour, *each) for file in files for each in file.ranges]
    if len(await connection.fetch(_INSERT_RANGES, *_columns(ranges))) < len(ranges):
        raise FormatError(f"other live files cover offsets of these: {[file.key for file in files]}")
    projects = [
        (ids[file.key], file.hour, project_id, file.projects[project_id], share)
        for file in files
        for project_id, share in byte_shares(file).items()
    ]
    await connection.execute(_INSERT_PROJECTS, *_columns(projects))


async def insert_names(connection: Connection, plan_id: int, files: Sequence[LakeFile]) -> dict[str, int]:
    """The files without what they hold, as retired ones are kept: their ids, by key. Raises `FormatError` for a key
    that is there already."""
    rows = await connection.fetch(_INSERT_FILES, plan_id, *_columns(map(_file_row, files)))
    if len(rows) < len(files):
        raise FormatError(f"the manifest has one of these files already: {[file.key for file in files]}")
    return {row["key"]: row["file_id"] for row in rows}


async def add_volumes(connection: Connection, files: Sequence[LakeFile]) -> None:
    counts: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for file in files:
        counts.update(file.projects.keys())
        rows.update(file.projects)
        sizes.update(byte_shares(file))
    if counts:
        volumes = [(project_id, counts[project_id], rows[project_id], sizes[project_id]) for project_id in counts]
        await connection.execute(_ADD_VOLUMES, *_columns(volumes))


async def load_files(connection: Connection, file_ids: Sequence[int]) -> dict[int, LakeFile]:
    """Those that are live, by their ids."""
    return {row["file_id"]: _file(row) for row in await connection.fetch(_LOAD, file_ids)}


def entry_of(row: Any) -> FileEntry:
    """A row with the columns of `FileEntry`."""
    entry = FileEntry(*row)
    return entry._replace(id_digest=_unsigned(entry.id_digest))


def _file_row(file: LakeFile) -> tuple[object, ...]:
    """In the order of insert_lake_files.sql."""
    return (
        file.key,
        file.hour,
        file.rows,
        file.bytes,
        file.checksum,
        _signed(file.id_digest),
        file.min_timestamp,
        file.max_timestamp,
        file.tier,
    )


def _file(row: Any) -> LakeFile:
    ranges = zip(row["partition_ids"], row["first_offsets"], row["next_offsets"], strict=True)
    return LakeFile(
        key=row["key"],
        hour=row["hour"],
        rows=row["rows"],
        bytes=row["bytes"],
        checksum=row["checksum"],
        id_digest=_unsigned(row["id_digest"]),
        min_timestamp=row["min_timestamp"],
        max_timestamp=row["max_timestamp"],
        ranges=tuple(OffsetRange(*each) for each in ranges),
        projects=dict(zip(row["project_ids"], row["project_rows"], strict=True)),
        tier=row["tier"],
    )


def _columns(rows: Iterable[Sequence[object]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _signed(digest: int) -> int:
    return digest - (1 << DIGEST_BITS) if digest >> (DIGEST_BITS - 1) else digest


def _unsigned(digest: int) -> int:
    return digest % (1 << DIGEST_BITS)
