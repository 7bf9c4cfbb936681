"""Webhooks over real sockets, to a receiver that does what receivers do."""

import asyncio
import hmac
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from aiohttp import web

from analytics_actors.webhook import POLL_S, Webhooks, body_of
from analytics_actors.webhook_hosts import WebhookHosts
from storage.memory_patterns import MemoryPatterns
from storage.pattern_store import Found, StoredPattern
from tests.unit.test_app_patterns import detection

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Receiver:
    """Keeps the requests; answers 200 unless told otherwise."""

    port: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answers: list[Answer | int] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.path, headers, await request.read()))
        answer = self.answers.pop(0) if self.answers else 200
        return web.Response(status=answer) if isinstance(answer, int) else await answer(request)

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/hook"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@dataclass
class Sender:
    """A store with a clock of its own, and what delivers from it."""

    hosts: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    now: float = 1_000_000.0
    store: MemoryPatterns = field(init=False)
    webhooks: Webhooks = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryPatterns(clock=lambda: self.now)
        self.restart()

    def restart(self) -> None:
        self.webhooks = Webhooks(self.store, WebhookHosts(self.hosts), deadline_s=0.5, clock=lambda: self.now)

    async def deliver(self, *urls: str) -> list[StoredPattern]:
        await self.store.save([], [Found(detection(minute), url) for minute, url in enumerate(urls)])
        await self.webhooks.deliver_due()
        return await self.patterns()

    async def patterns(self) -> list[StoredPattern]:
        return (await self.store.list_patterns("shop")).patterns[::-1]


async def test_it_arrives_signed(receiver: Receiver) -> None:
    sender = Sender()
    [stored] = await sender.deliver(receiver.url())
    assert (stored.delivery, stored.attempts, stored.last_error) == ("delivered", 1, None)
    [(path, headers, body)] = receiver.requests
    assert (path, body, headers["content-type"]) == ("/hook", body_of(detection(0)), "application/json")
    assert msgspec.json.decode(body)["data"]["id"] == headers["webhook-id"] == detection(0).id
    assert headers["webhook-timestamp"] == "1000000"
    signed = hmac.digest(
        await sender.store.signing_secret("shop"), f"{detection(0).id}.1000000.".encode() + body, "sha256"
    )
    assert headers["webhook-signature"] == f"v1,{b64encode(signed).decode()}"


async def test_failures_are_tried_again_under_the_same_id(receiver: Receiver) -> None:
    sender = Sender()
    receiver.answers = [500, 429]
    [stored] = await sender.deliver(receiver.url())
    assert (stored.delivery, stored.last_error) == ("pending", "the receiver answered 500")
    for _ in range(2):
        sender.now += 100
        await sender.webhooks.deliver_due()
    assert [stored.delivery for stored in await sender.patterns()] == ["delivered"]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in receiver.requests}) == 3


async def test_redirects_are_not_followed(receiver: Receiver) -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect(receiver.url() + "/elsewhere")

    receiver.answers = [redirect]
    [stored] = await Sender().deliver(receiver.url())
    assert (stored.delivery, stored.last_error) == ("pending", "the receiver answered 307")
    assert [path for path, _, _ in receiver.requests] == ["/hook"]


async def test_410_is_final(receiver: Receiver) -> None:
    receiver.answers = [410]
    [stored] = await Sender().deliver(receiver.url())
    assert stored.delivery == "failed"


async def test_one_that_hangs_holds_nobody_up_for_longer_than_the_deadline(receiver: Receiver) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    receiver.answers = [hang]
    began = asyncio.get_running_loop().time()
    first, second = await Sender().deliver(receiver.url(), receiver.url())
    assert asyncio.get_running_loop().time() - began < 3
    assert sorted([first.delivery, second.delivery]) == ["delivered", "pending"]


async def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    receiver.answers = [endless]
    [stored] = await Sender().deliver(receiver.url())
    assert stored.delivery == "delivered"


async def test_nobody_there_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    [stored] = await Sender().deliver(f"http://127.0.0.1:{port}/")
    assert stored.delivery == "pending"
    assert stored.last_error


async def test_a_name_with_a_private_address_must_be_named(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    [refused] = await Sender(["*.example.com"]).deliver(receiver.url("hooks.example.com"))
    assert refused.delivery == "failed"
    assert "not public" in (refused.last_error or "")
    assert receiver.requests == []
    [stored] = await Sender(["hooks.example.com"]).deliver(receiver.url("hooks.example.com"))
    assert stored.delivery == "delivered"
    assert receiver.requests[0][1]["host"] == f"hooks.example.com:{receiver.port}"


async def test_the_address_that_was_checked_is_the_one_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers with another address the second time is asked once."""
    answers = ["127.0.0.1", "10.0.0.1"]

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    [stored] = await Sender(["hooks.example.com"]).deliver(receiver.url("hooks.example.com"))
    assert stored.delivery == "delivered"
    assert answers == ["10.0.0.1"]


async def test_a_proxy_in_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    [stored] = await Sender().deliver(receiver.url())
    assert stored.delivery == "delivered"


async def test_a_crash_between_sending_and_noting_it_sends_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender()

    async def crash(_: str) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(sender.store, "delivered", crash)
    with pytest.raises(asyncio.CancelledError):
        await sender.deliver(receiver.url())
    monkeypatch.undo()
    sender.restart()
    assert await sender.webhooks.deliver_due() == 0
    sender.now += 60
    assert await sender.webhooks.deliver_due() == 1
    assert [stored.delivery for stored in await sender.patterns()] == ["delivered"]
    assert [headers["webhook-id"] for _, headers, _ in receiver.requests] == [detection(0).id] * 2


async def test_it_runs_through_an_outage_of_the_store_and_is_woken(receiver: Receiver) -> None:
    sender = Sender()
    sender.store.away = True
    task = asyncio.create_task(sender.webhooks.run())
    await asyncio.sleep(0.05)
    assert "away" in sender.webhooks.observe()["trouble"]
    sender.store.away = False
    await sender.store.save([], [Found(detection(minute), receiver.url()) for minute in range(30)])
    sender.webhooks.wake()
    async with asyncio.timeout(POLL_S):
        while len(receiver.requests) < 30 or sender.webhooks.observe()["delivered"] < 30:
            await asyncio.sleep(0.01)
    assert {stored.delivery for stored in await sender.patterns()} == {"delivered"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
