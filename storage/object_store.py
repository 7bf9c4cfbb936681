"""The object store that the lake's files lie in: the contract of a folder, of S3 and of the one in memory.

The law:
- An object is there whole or not at all, and is durable when the call that made it returns.
- `put_if_absent` never changes an object that is there. A key is never used for two contents, so the same call
  again is harmless, whatever became of the first.
- S3 servers that look before they write, without a lock (OpenStack Swift), let several that put one key at the same
  moment all have WRITTEN; the last one's bytes stand. Who may use a key is for the manifest to decide.
- `Unavailable` leaves the outcome of a call unknown, and not even decided: the request may still take effect later.
- `Misconfigured` is raised where only a person can help: no such bucket, no right, no credentials.
- A silent server is given up after a few times `lake.request_timeout_s`. A call that was cancelled ends in the
  background; at most as many run as the store has threads, the others wait for their turn.
- Keys are relative paths of plain segments. A key that is no such path is a `ValueError`; what lies in the store under
  such names is not listed.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from yarl import URL

from config.settings import LakeSettings
from storage.errors import Misconfigured

Source = Path | bytes
"""What is put: a file, which may be larger than memory, or bytes."""


class ObjectInfo(NamedTuple):
    key: str
    size: int
    checksum: str
    """SHA-256 of the content in hex; empty in listings, and for an object that something else has put."""
    modified_s: float


class PutResult(Enum):
    WRITTEN = "written"
    SAME = "same"
    """An object of equal size and checksum was there already."""
    OTHER = "other"
    """Something else is there; nothing was changed."""


class ObjectStore(Protocol):
    async def check(self) -> None:
        """Raise `Misconfigured` unless objects can be put (never replaced), listed, read and deleted, and
        `Unavailable` when the store cannot be reached. Leaves nothing behind."""

    async def put_if_absent(self, key: str, source: Source, *, checksum: str | None = None) -> PutResult:
        """`checksum` is that of the source, for a caller who knows it."""

    async def get(self, key: str) -> bytes:
        """Raises `Missing`, as `download` does, and `FormatError` when the bytes are not those that were put."""

    async def download(self, key: str, target: Path) -> None:
        """The file is there whole or not at all; one that was there is replaced."""

    async def head(self, key: str) -> ObjectInfo | None:
        """None when there is no such object."""

    async def copy(self, source: str, target: str, *, storage_class: str = "") -> None:
        """An object at `target` is replaced; with `target` the source itself its storage class is changed. Stores
        without storage classes ignore them. Raises `Missing`."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Those that are not there are no error."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key begins so, in the order of the keys' bytes. What is put or deleted meanwhile may be among
        them or not."""

    def local_path(self, key: str) -> Path | None:
        """Where readers on this machine find the object without a copy, if there is such a place."""

    async def close(self) -> None: ...


def open_object_store(settings: LakeSettings, *, data: Path) -> ObjectStore:
    """The store that `lake.url` names. Raises `Misconfigured` when it names none; nothing is asked of it yet."""
    url = split_url(lake_url(settings, data=data), setting="lake.url")
    if url.scheme == "file":
        from storage.folder_objects import FolderObjects

        return FolderObjects(Path(unquote(url.path)))
    from storage.s3_objects import S3Objects

    return S3Objects(url.netloc, url.path.strip("/"), settings)


def lake_url(settings: LakeSettings, *, data: Path) -> str:
    """`lake.url`, or that of the folder that stands for none."""
    return settings.url or (data / "lake").absolute().as_uri()


def split_url(text: str, *, setting: str) -> SplitResult:
    """Raises `Misconfigured` for what is no place of objects; `setting` is where it was written."""
    url = urlsplit(text)
    is_folder = url.scheme == "file" and not url.netloc and url.path.startswith("/")
    is_bucket = url.scheme == "s3" and url.netloc and "@" not in url.netloc
    if not (is_folder or is_bucket) or url.query or url.fragment:
        raise Misconfigured(
            f"{setting} = {text!r} is neither file:///absolute/folder nor s3://bucket/prefix"
            " (the server of an S3 that is not Amazon's is given by its endpoint_url)"
        )
    return url


def s3_parts(endpoint_url: str, url: SplitResult) -> tuple[str, ...]:
    """Server, bucket and prefix: the same for one place, however its server is written. Raises `ValueError`."""
    endpoint = URL(endpoint_url)
    host = (endpoint.host or "").rstrip(".")
    server = f"{host}:{endpoint.port}" if host and not host.endswith(".amazonaws.com") else ""
    return (server, url.netloc, *(part for part in url.path.split("/") if part))


def is_key(text: str) -> bool:
    parts = text.split("/")
    return text.isprintable() and not any(part in ("", ".", "..") for part in parts) and not text.startswith(".")


def checked_key(key: str) -> str:
    """The key itself. Raises `ValueError`."""
    if not is_key(key):
        raise ValueError(f"{key!r} is no key of an object")
    return key


def sha256_of(source: Source) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
