"""The object store in a bucket of S3, or of a server that speaks its protocol.

The SHA-256 of an object is its user metadata `sha256`. Objects are put with `If-None-Match: *`, those of more than
`SINGLE_BYTES` in parts, with the condition on the completion. What a dead process has begun to put in parts stays in
the bucket, unseen, until the bucket's lifecycle rule for incomplete uploads ends it.
"""

import asyncio
import hashlib
import io
import random
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from config.settings import MIB, LakeSettings
from storage.errors import FormatError, Missing, Unavailable
from storage.object_probe import probe
from storage.object_store import ObjectInfo, PutResult, Source, checked_key, is_key, sha256_of
from storage.s3_client import THREADS, connect
from storage.s3_errors import CONFLICTS, code_of, may_be_credentials, our_errors, raise_first, status_of

SINGLE_BYTES = 64 * MIB
"""Larger objects are put in parts, so that an error costs one of them."""
PART_BYTES = 16 * MIB
"""A part is in memory while it is sent; 10,000 of them are the most that S3 takes."""
CONFLICT_TRIES = 6
STREAM_TRIES = 3
_MAX_BACKOFF_S = 5.0
_CHUNK_BYTES = 1 * MIB
_DELETED_AT_ONCE = 1000

T = TypeVar("T")


class _Conflict(Exception):
    """Another put of the same key was under way; nobody knows yet which one is done."""


class S3Objects:
    def __init__(
        self,
        bucket: str,
        prefix: str,
        settings: LakeSettings,
        *,
        single_bytes: int = SINGLE_BYTES,
        part_bytes: int = PART_BYTES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._where = f"s3://{bucket}" + (f" at {settings.endpoint_url}" if settings.endpoint_url else "")
        self._settings = settings
        self._single_bytes = single_bytes
        self._part_bytes = part_bytes
        self._jitter = jitter
        self._encryption = (
            {"ServerSideEncryption": settings.server_side_encryption} if settings.server_side_encryption else {}
        )
        self._client: Any = None
        self._connecting = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3-objects")

    async def _run(self, what: str, call: Callable[[Any], T]) -> T:
        """The call gets the client, in a thread of the pool."""

        def guarded() -> T:
            with our_errors(what, self._where):
                client = self._connected()
                try:
                    return call(client)
                except (NoCredentialsError, ClientError) as error:
                    if may_be_credentials(error):
                        self._forget(client)
                    raise
                except KeyError as error:
                    # The client takes a proxy's page, or an answer without a header, for a success.
                    raise Unavailable(f"{self._where}: {what}: an answer without {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._pool, guarded)

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                self._client = connect(self._settings)
            return self._client

    def _forget(self, client: Any) -> None:
        """A client never looks for credentials again; the next one does. Other threads may still use this one."""
        with self._connecting:
            if self._client is client:
                self._client = None

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_key(key)}

    async def check(self) -> None:
        await probe(self)

    async def put_if_absent(self, key: str, source: Source, *, checksum: str | None = None) -> PutResult:
        target = self._object(key)
        for attempt in range(CONFLICT_TRIES):
            with suppress(_Conflict):
                return await self._run(f"putting {key}", lambda client: self._put(client, target, source, checksum))
            await asyncio.sleep(min(0.1 * 2.0**attempt, _MAX_BACKOFF_S) * (0.5 + self._jitter()))
        raise Unavailable(f"{self._where}: {key} is being put by somebody else")

    def _put(self, client: Any, target: dict[str, Any], source: Source, checksum: str | None) -> PutResult:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        checksum = checksum or sha256_of(source)
        kind = {"Metadata": {"sha256": checksum}, **self._encryption}
        is_large = size > self._single_bytes
        # Whether there is one already is told after the last part only.
        if not is_large or self._look_at(client, target) is None:
            try:
                with _opened(source) as file:
                    if is_large:
                        self._put_parts(client, target, file, kind)
                    else:
                        client.put_object(**target, Body=file, IfNoneMatch="*", **kind)
                return PutResult.WRITTEN
            except ClientError as error:
                if code_of(error) in CONFLICTS:
                    raise _Conflict from error
                if status_of(error) != 412:
                    raise
        return self._compare(client, target, size, checksum)

    def _put_parts(self, client: Any, target: dict[str, Any], file: IO[bytes], kind: dict[str, Any]) -> None:
        is_checked = client.meta.config.request_checksum_calculation == "when_supported"
        # Parts come with this checksum by themselves; Amazon takes it only if it was told at the beginning.
        kind = kind | ({"ChecksumAlgorithm": "CRC32"} if is_checked else {})
        upload = {**target, "UploadId": client.create_multipart_upload(**target, **kind)["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while content := file.read(self._part_bytes):
                number = len(parts) + 1
                answer = client.upload_part(**upload, PartNumber=number, Body=content)
                checksums = {name: answer[name] for name in answer if name.startswith("Checksum")}
                checksums.pop("ChecksumType", None)
                parts.append({"PartNumber": number, "ETag": answer["ETag"], **checksums})
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException:
            with suppress(BotoCoreError, ClientError):
                client.abort_multipart_upload(**upload)
            raise

    def _compare(self, client: Any, target: dict[str, Any], size: int, checksum: str) -> PutResult:
        found = self._look_at(client, target)
        if found is None:
            raise _Conflict
        if found.size != size:
            return PutResult.OTHER
        if not found.checksum:
            with tempfile.TemporaryFile() as file:
                found = found._replace(checksum=self._read(client, target, file))
        return PutResult.SAME if found.checksum == checksum else PutResult.OTHER

    def _look_at(self, client: Any, target: dict[str, Any]) -> ObjectInfo | None:
        try:
            found = client.head_object(**target)
        except ClientError as error:
            if status_of(error) != 404:
                raise
            # An answer without a body does not tell whether it is the bucket that is missing.
            client.head_bucket(Bucket=self._bucket)
            return None
        return ObjectInfo(
            target["Key"].removeprefix(self._prefix),
            found["ContentLength"],
            found["Metadata"].get("sha256", ""),
            found["LastModified"].timestamp(),
        )

    async def get(self, key: str) -> bytes:
        target, file = self._object(key), io.BytesIO()
        await self._run(f"reading {key}", lambda client: self._read(client, target, file))
        return file.getvalue()

    async def download(self, key: str, target: Path) -> None:
        source = self._object(key)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")

        def fetch(client: Any) -> None:
            try:
                with partial.open("xb") as file:
                    self._read(client, source, file)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

        await self._run(f"reading {key}", fetch)

    def _read(self, client: Any, target: dict[str, Any], file: IO[bytes]) -> str:
        """All of the object into the file; its checksum."""
        for attempt in range(1, STREAM_TRIES + 1):
            try:
                answer = client.get_object(**target)
            except ClientError as error:
                if code_of(error) == "NoSuchKey":
                    raise Missing(target["Key"].removeprefix(self._prefix)) from error
                raise
            try:
                found = _receive(answer["Body"], file)
            except BotoCoreError:
                # Retries of the client end where the body begins.
                if attempt == STREAM_TRIES:
                    raise
                continue
            if found != answer["Metadata"].get("sha256", found):
                raise FormatError(f"{self._where}: {target['Key']} is damaged: its checksum is not that of its bytes")
            return found
        raise AssertionError

    async def head(self, key: str) -> ObjectInfo | None:
        target = self._object(key)
        return await self._run(f"looking at {key}", lambda client: self._look_at(client, target))

    async def copy(self, source: str, target: str, *, storage_class: str = "") -> None:
        there, new = self._object(source), self._object(target)
        kind = {**self._encryption, **({"StorageClass": storage_class} if storage_class else {})}

        def copy(client: Any) -> None:
            if self._look_at(client, there) is None:
                raise Missing(source)
            if source != target or storage_class:
                client.copy_object(**new, CopySource=there, **kind)

        await self._run(f"copying {source}", copy)

    async def delete(self, keys: Sequence[str]) -> None:
        objects = [{"Key": self._object(key)["Key"]} for key in keys]

        def delete(client: Any) -> None:
            for begin in range(0, len(objects), _DELETED_AT_ONCE):
                some = {"Objects": objects[begin : begin + _DELETED_AT_ONCE], "Quiet": True}
                answer = client.delete_objects(Bucket=self._bucket, Delete=some)
                raise_first(answer.get("Errors", []), "deleting", self._where)

        await self._run("deleting", delete)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            page, after = await self._run(f"listing {prefix}", lambda client: self._page(client, request))
            for info in page:
                yield info
            if after is None:
                return
            request["ContinuationToken"] = after

    def _page(self, client: Any, request: dict[str, Any]) -> tuple[Sequence[ObjectInfo], str | None]:
        """What has a key, and where the next page begins."""
        answer = client.list_objects_v2(**request)
        found = [
            ObjectInfo(key, each["Size"], "", each["LastModified"].timestamp())
            for each in answer.get("Contents", [])
            if is_key(key := each["Key"].removeprefix(self._prefix))
        ]
        return found, answer["NextContinuationToken"] if answer["IsTruncated"] else None

    def local_path(self, key: str) -> Path | None:
        return None

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()


def _opened(source: Source) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _receive(body: Any, file: IO[bytes]) -> str:
    file.seek(0)
    file.truncate()
    digest = hashlib.sha256()
    for chunk in body.iter_chunks(_CHUNK_BYTES):
        file.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()
