"""What is S3's own: parts, credentials, buckets that are not there, servers that are silent, refuse or break off."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from config.settings import MIB, LakeSettings
from storage.errors import FormatError, Misconfigured, Missing, Unavailable
from storage.object_store import PutResult
from storage.s3_objects import S3Objects
from tests.contract.cut_proxy import CutProxy
from tests.contract.scripted_s3 import Answer, Request, ScriptedS3, error
from tests.object_servers import ObjectServer

KEY = "events/part-1.parquet"
OK = Answer(headers={"ETag": '"e"'})
BEGUN = Answer(body=b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
COMPLETED = Answer(body=b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")


def stored(content: bytes, *, checksum: str | None = None, **changes: Any) -> Answer:
    """An object as GET and HEAD tell it."""
    headers = {
        "Last-Modified": "Fri, 20 Nov 2026 12:00:00 GMT",
        "ETag": '"e"',
        "x-amz-meta-sha256": checksum or hashlib.sha256(content).hexdigest(),
        "Content-Length": str(len(content)),
    }
    return Answer(200, headers, content, **changes)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ObjectServer("", "test:tester", "testing").environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def stores() -> AsyncIterator["Stores"]:
    made = Stores()
    yield made
    for store in made.opened:
        await store.close()


class Stores:
    def __init__(self) -> None:
        self.opened: list[S3Objects] = []

    def open(self, url: str, bucket: str = "lake", *, prefix: str = "p", **changes: Any) -> S3Objects:
        settings = replace(LakeSettings(endpoint_url=url, path_style=True, request_timeout_s=20.0), **changes)
        sizes = {"single_bytes": 6 * MIB, "part_bytes": 5 * MIB}
        self.opened.append(S3Objects(bucket, prefix, settings, jitter=lambda: 0.0, **sizes))
        return self.opened[-1]


@pytest.fixture(params=["moto", "swift"])
def server(request: pytest.FixtureRequest) -> ObjectServer:
    found: ObjectServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def bucket(server: ObjectServer) -> str:
    return server.make_bucket()


def incomplete_uploads(server: ObjectServer, bucket: str) -> list[Any]:
    client = server.client()
    found: list[Any] = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    client.close()
    return found


async def test_a_large_object_is_put_in_parts(
    stores: Stores, server: ObjectServer, bucket: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (44 * 1024))
    store = stores.open(server.endpoint_url, bucket)
    assert await store.put_if_absent(KEY, source) is PutResult.WRITTEN
    assert await store.put_if_absent(KEY, source) is PutResult.SAME
    assert await store.put_if_absent(KEY, b"x" * 11 * MIB) is PutResult.OTHER
    await store.download(KEY, target)
    assert target.read_bytes() == source.read_bytes()
    info = await store.head(KEY)
    assert info is not None
    assert info[:3] == (KEY, 11 * MIB, hashlib.sha256(source.read_bytes()).hexdigest())
    await store.copy(KEY, "events/copy")
    copy = await store.head("events/copy")
    assert copy is not None
    assert copy[1:3] == info[1:3]
    assert incomplete_uploads(server, bucket) == []
    await store.delete([KEY, "events/copy"])
    assert [info async for info in store.list("")] == []


async def test_of_large_puts_at_once_one_stands(stores: Stores, server: ObjectServer, bucket: str) -> None:
    store = stores.open(server.endpoint_url, bucket)
    contents = [b"%d" % n * 7 * MIB for n in range(4)]
    results = await asyncio.gather(*(store.put_if_absent(KEY, content) for content in contents))
    # Both servers look before they put the parts together, without a lock; Amazon's does it in one step.
    assert PutResult.WRITTEN in results
    there = await store.get(KEY)
    assert there in [content for content, result in zip(contents, results, strict=True) if result is PutResult.WRITTEN]
    assert await store.put_if_absent(KEY, there) is PutResult.SAME
    assert await store.put_if_absent(KEY, b"x" * 7 * MIB) is PutResult.OTHER
    assert incomplete_uploads(server, bucket) == []


async def test_an_object_of_something_else_is_compared_by_its_bytes(
    stores: Stores, server: ObjectServer, bucket: str
) -> None:
    client = server.client()
    client.put_object(Bucket=bucket, Key=f"p/{KEY}", Body=b"one")
    client.put_object(Bucket=bucket, Key="p/", Body=b"")
    client.put_object(Bucket=bucket, Key="elsewhere", Body=b"")
    client.close()
    store = stores.open(server.endpoint_url, bucket)
    assert await store.put_if_absent(KEY, b"one") is PutResult.SAME
    assert await store.put_if_absent(KEY, b"two") is PutResult.OTHER
    assert [info.key async for info in store.list("")] == [KEY]
    assert await store.get(KEY) == b"one"


async def test_a_bucket_without_a_prefix(stores: Stores, server: ObjectServer, bucket: str) -> None:
    store = stores.open(server.endpoint_url, bucket, prefix="")
    await store.check()
    assert await store.put_if_absent(KEY, b"one") is PutResult.WRITTEN
    assert [info.key async for info in store.list("")] == [KEY]


async def test_a_missing_bucket(stores: Stores, server: ObjectServer, tmp_path: Path) -> None:
    store = stores.open(server.endpoint_url, "nobody-made-this")
    for call in (
        store.check(),
        store.put_if_absent(KEY, b"x"),
        store.put_if_absent(KEY, b"x" * 7 * MIB),
        store.get(KEY),
        store.head(KEY),
        store.download(KEY, tmp_path / "target"),
        store.copy(KEY, "events/copy"),
        store.delete([KEY]),
        anext(store.list("")),
    ):
        with pytest.raises(Misconfigured, match=r"nobody-made-this.*(no such bucket|404)"):
            await call
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "secret", "said"),
    [("test:tester", "wrong", "the secret key is wrong"), ("test:nobody", "testing", "check the credentials")],
)
async def test_wrong_credentials(
    stores: Stores, swift_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, key: str, secret: str, said: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = stores.open(swift_server.endpoint_url, swift_server.make_bucket())
    with pytest.raises(Misconfigured, match=said):
        await store.check()


async def test_credentials_come_from_a_profile(
    stores: Stores, swift_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text("[lake]\naws_access_key_id = test:tester\naws_secret_access_key = testing\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    bucket = swift_server.make_bucket()
    with pytest.raises(Misconfigured, match="no credentials"):
        await stores.open(swift_server.endpoint_url, bucket).check()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(Misconfigured, match="nobody"):
        await stores.open(swift_server.endpoint_url, bucket).check()
    monkeypatch.setenv("AWS_PROFILE", "lake")
    await stores.open(swift_server.endpoint_url, bucket).check()


async def test_credentials_that_come_later_are_found(
    stores: Stores, swift_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = swift_server.make_bucket()
    store = stores.open(swift_server.endpoint_url, bucket)
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        without.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(Misconfigured, match="no credentials"):
            await store.put_if_absent(KEY, b"x")
    assert await store.put_if_absent(KEY, b"x") is PutResult.WRITTEN


@pytest.mark.parametrize(
    "refusal", [error(403, "InvalidAccessKeyId"), error(403, "SignatureDoesNotMatch"), error(400, "ExpiredToken")]
)
async def test_credentials_that_are_refused_are_read_again(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Answer
) -> None:
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    def change_to(key: str) -> None:
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    def answer(request: Request) -> Answer:
        return OK if "Credential=new/" in request.headers["authorization"] else refusal

    change_to("old")
    with ScriptedS3(answer) as server:
        store = stores.open(server.url)
        with pytest.raises(Misconfigured):
            await store.put_if_absent(KEY, b"x")
        change_to("new")
        # The one that was refused has gone.
        assert await store.put_if_absent(KEY, b"x") is PutResult.WRITTEN


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Connections are taken, and never answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_silent_server_is_given_up(stores: Stores, silent_url: str) -> None:
    store = stores.open(silent_url, request_timeout_s=0.3)
    for call in (store.put_if_absent(KEY, b"x"), store.get(KEY), store.head(KEY), store.delete([KEY])):
        started_s = time.monotonic()
        with pytest.raises(Unavailable, match=r"(?i)read timeout"):
            await call
        assert time.monotonic() - started_s < 10


async def test_a_server_that_is_paused_goes_on(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory, swift_server: ObjectServer
) -> None:
    store = stores.open(swift_server.endpoint_url, swift_server.make_bucket(), request_timeout_s=0.5)
    swift_server.pause()
    try:
        with pytest.raises(Unavailable):
            await store.put_if_absent(KEY, b"x")
    finally:
        swift_server.resume()
    # What was sent while it was paused may take effect now.
    patient = stores.open(swift_server.endpoint_url, store._bucket)
    assert await patient.put_if_absent(KEY, b"x") in (PutResult.WRITTEN, PutResult.SAME)
    assert await patient.get(KEY) == b"x"


async def test_nobody_listens(stores: Stores) -> None:
    with pytest.raises(Unavailable, match=r"(?i)could not connect"):
        await stores.open("http://127.0.0.1:9").put_if_absent(KEY, b"x")


async def test_an_endpoint_that_is_no_url(stores: Stores) -> None:
    with pytest.raises(Misconfigured, match=r"lake\.endpoint_url = 'not a url'"):
        await stores.open("not a url").check()


async def test_a_put_asks_for_what_the_settings_say(stores: Stores) -> None:
    with ScriptedS3(OK) as s3:
        store = stores.open(s3.url, server_side_encryption="aws:kms", region="eu-central-1")
        assert await store.put_if_absent(KEY, b"abc") is PutResult.WRITTEN
        await store.put_if_absent(KEY, b"abc", checksum="of-the-caller")
    first, second = s3.requests
    assert (first.method, first.path) == ("PUT", f"/lake/p/{KEY}")
    assert first.headers["if-none-match"] == "*"
    assert first.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert first.headers["x-amz-meta-sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert "eu-central-1" in first.headers["authorization"]
    assert second.headers["x-amz-meta-sha256"] == "of-the-caller"


async def test_parts_and_copies_are_encrypted_too(stores: Stores) -> None:
    copied = Answer(body=b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")
    with ScriptedS3(error(404, "NoSuchKey"), OK, BEGUN, OK, OK, COMPLETED, stored(b""), copied) as s3:
        store = stores.open(s3.url, server_side_encryption="AES256")
        assert await store.put_if_absent(KEY, b"x" * 7 * MIB) is PutResult.WRITTEN
        await store.copy(KEY, KEY, storage_class="GLACIER_IR")
    head, bucket, begin, one, two, complete, _, copy = s3.requests
    assert (head.method, bucket.method, begin.path) == ("HEAD", "HEAD", f"/lake/p/{KEY}?uploads")
    assert begin.headers["x-amz-server-side-encryption"] == copy.headers["x-amz-server-side-encryption"] == "AES256"
    assert "if-none-match" not in begin.headers
    assert complete.headers["if-none-match"] == "*"
    assert "partNumber=1" in one.path
    assert "partNumber=2" in two.path
    assert copy.headers["x-amz-storage-class"] == "GLACIER_IR"


@pytest.mark.parametrize(("path_style", "there"), [(True, "s3.test/lake/p"), (False, "lake.s3.test/p")])
async def test_where_the_buckets_name_stands(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, path_style: bool, there: str
) -> None:
    with ScriptedS3(OK) as s3:
        # A proxy is told the whole URL, and nobody asks for the address of the name in it.
        monkeypatch.setenv("HTTP_PROXY", s3.url)
        monkeypatch.setenv("NO_PROXY", "")
        await stores.open("http://s3.test", path_style=path_style).put_if_absent(KEY, b"abc")
    assert s3.requests[0].path == f"http://{there}/{KEY}"


async def test_parts_that_failed_are_dropped(stores: Stores) -> None:
    with (
        ScriptedS3(error(404, "NoSuchKey"), OK, BEGUN, OK, error(403, "AccessDenied")) as s3,
        pytest.raises(Misconfigured, match="AccessDenied"),
    ):
        await stores.open(s3.url).put_if_absent(KEY, b"x" * 7 * MIB)
    assert [request.method for request in s3.requests] == ["HEAD", "HEAD", "POST", "PUT", "PUT", "DELETE"]
    assert "uploadId=u" in s3.requests[-1].path


async def test_parts_that_were_put_together_without_an_answer(stores: Stores) -> None:
    content = b"x" * 7 * MIB
    gone = error(404, "NoSuchUpload")
    with ScriptedS3(error(404, "NoSuchKey"), OK, BEGUN, OK, OK, gone, OK, stored(content)) as s3:
        assert await stores.open(s3.url).put_if_absent(KEY, content) is PutResult.SAME
    assert s3.requests[-1].method == "HEAD"


async def test_checksums_of_parts_are_told_again_at_the_end(stores: Stores) -> None:
    part = Answer(headers={"ETag": '"e"', "x-amz-checksum-crc32": "AAAAAA=="})
    with ScriptedS3(error(404, "NoSuchKey"), OK, BEGUN, part, part, COMPLETED) as s3:
        await stores.open(s3.url).put_if_absent(KEY, b"x" * 7 * MIB)
    assert s3.requests[2].headers["x-amz-checksum-algorithm"] == "CRC32"
    assert "x-amz-checksum-crc32" in s3.requests[3].headers
    assert s3.requests[-1].body.count(b"<ChecksumCRC32>AAAAAA==</ChecksumCRC32>") == 2


async def test_a_conflict_is_tried_again(stores: Stores) -> None:
    with ScriptedS3(error(409, "ConditionalRequestConflict"), error(409, "ConditionalRequestConflict"), OK) as s3:
        assert await stores.open(s3.url).put_if_absent(KEY, b"abc") is PutResult.WRITTEN
    assert [request.method for request in s3.requests] == ["PUT"] * 3
    assert all(request.headers["if-none-match"] == "*" for request in s3.requests)


async def test_a_conflict_without_end_is_given_up(stores: Stores) -> None:
    with (
        ScriptedS3(error(409, "ConditionalRequestConflict")) as s3,
        pytest.raises(Unavailable, match="by somebody else"),
    ):
        await stores.open(s3.url).put_if_absent(KEY, b"abc")


async def test_a_put_whose_connection_broke_is_the_same(stores: Stores, moto_server: ObjectServer) -> None:
    proxy = CutProxy(moto_server.endpoint_url)
    await proxy.start()
    try:
        store = stores.open(proxy.url, moto_server.make_bucket())
        proxy.cut_next("reply", b"the content")
        assert await store.put_if_absent(KEY, b"the content") is PutResult.SAME
        proxy.cut_next("request", b"the content")
        assert await store.put_if_absent("events/other", b"the content") is PutResult.WRITTEN
    finally:
        await proxy.stop()


async def test_a_put_whose_answer_was_lost_is_the_same(stores: Stores) -> None:
    with ScriptedS3(error(500, "InternalError"), error(412, "PreconditionFailed"), stored(b"abc")) as s3:
        assert await stores.open(s3.url).put_if_absent(KEY, b"abc") is PutResult.SAME
    assert [request.method for request in s3.requests] == ["PUT", "PUT", "HEAD"]


async def test_a_server_that_is_busy_is_asked_again_and_then_left(stores: Stores) -> None:
    with ScriptedS3(error(503, "SlowDown"), error(503, "SlowDown"), OK) as s3:
        assert await stores.open(s3.url).put_if_absent(KEY, b"abc") is PutResult.WRITTEN
    with ScriptedS3(error(503, "SlowDown")) as s3, pytest.raises(Unavailable, match="SlowDown"):
        await stores.open(s3.url).put_if_absent(KEY, b"abc")
    assert len(s3.requests) == 3


async def test_a_body_that_breaks_off_is_read_again(stores: Stores, tmp_path: Path) -> None:
    cut, whole = stored(b"abcdef" * 1000, cut_after=500), stored(b"abcdef" * 1000)
    with ScriptedS3(cut, whole, cut, whole) as s3:
        store = stores.open(s3.url)
        assert await store.get(KEY) == whole.body
        await store.download(KEY, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == whole.body
    with ScriptedS3(cut) as s3, pytest.raises(Unavailable):
        await stores.open(s3.url).download(KEY, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


async def test_damaged_bytes_are_no_content(stores: Stores, tmp_path: Path) -> None:
    with ScriptedS3(stored(b"abc", checksum="0" * 64)) as s3:
        store = stores.open(s3.url)
        with pytest.raises(FormatError, match="damaged"):
            await store.get(KEY)
        with pytest.raises(FormatError, match="damaged"):
            await store.download(KEY, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


async def test_an_answer_that_lacks_something_is_none(stores: Stores) -> None:
    """A proxy's, with the status 200."""
    with ScriptedS3(Answer(body=b"<html/>")) as s3:
        store = stores.open(s3.url)
        for call in (store.head(KEY), anext(store.list("")), store.copy(KEY, "events/other")):
            with pytest.raises(Unavailable, match="an answer without"):
                await call


async def test_objects_that_cannot_be_deleted_are_told(stores: Stores) -> None:
    refused = (
        b"<DeleteResult><Error><Key>p/a</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    with ScriptedS3(Answer(body=refused)) as s3, pytest.raises(Misconfigured, match="p/a"):
        await stores.open(s3.url).delete(["a", "b"])
    failed = refused.replace(b"AccessDenied", b"InternalError")
    with ScriptedS3(Answer(body=failed)) as s3, pytest.raises(Unavailable, match="InternalError"):
        await stores.open(s3.url).delete(["a", "b"])


@pytest.mark.parametrize(
    ("status", "code", "raised"),
    [
        (403, "AccessDenied", Misconfigured),
        (404, "NoSuchBucket", Misconfigured),
        (400, "AuthorizationHeaderMalformed", Misconfigured),
        (400, "ExpiredToken", Misconfigured),
        (501, "NotImplemented", Misconfigured),
        (400, "RequestTimeout", Unavailable),
        (500, "InternalError", Unavailable),
        (404, "NoSuchKey", Missing),
    ],
)
async def test_what_an_answer_means(stores: Stores, status: int, code: str, raised: type[Exception]) -> None:
    with ScriptedS3(error(status, code)) as s3, pytest.raises(raised) as told:
        await stores.open(s3.url).get(KEY)
    assert "lake." not in str(told.value), "it may be a destination's bucket"


async def test_a_server_that_ignores_the_condition_is_refused(stores: Stores) -> None:
    objects: dict[str, bytes] = {}

    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            objects[request.path] = request.body
        return OK if request.method in ("PUT", "POST") else stored(objects[request.path])

    with ScriptedS3(answer) as s3, pytest.raises(Misconfigured, match="replaces objects"):
        await stores.open(s3.url).check()
    assert s3.requests[-1].method == "POST"
