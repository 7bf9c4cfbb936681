"""`load` against a gateway in memory: outcomes, keys, retries, what stops it."""

import gzip
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from analytics_actors.cli import load as load_module
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.load import Load, Loaded, run
from analytics_actors.cli.load_keys import RENEWED_AFTER_S, ProjectKeys
from analytics_actors.cli.load_requests import Post, Reply, Requests, Unreachable, pause_before
from tests.unit.cli_server import FakeGateway, data, gateway, invoke

__all__ = ["data", "gateway"]

KNOWN_PROJECTS = {"old"}
CONCURRENT = 8
"""Requests at once, by default."""


class IngestingGateway(FakeGateway):
    """Knows projects and keys, and stores an event once."""

    def __init__(self) -> None:
        super().__init__()
        self.projects = dict.fromkeys(KNOWN_PROJECTS, "")
        self.owners: dict[str, str] = {"given": "default"}
        self.stored: dict[str, set[str]] = {}
        self.refusals: list[Callable[[httpx.Request], httpx.Response]] = []
        self.routes["POST", "/v1/projects"] = self._create_project
        self.routes["POST", "/v1/keys"] = self._create_key
        self.routes["POST", "/v1/events/batch"] = self._take

    def _create_project(self, request: httpx.Request) -> httpx.Response:
        wanted = msgspec.json.decode(request.content)
        if wanted["projectId"] in self.projects:
            return httpx.Response(409, json={"code": "conflict", "message": "It is there."})
        if wanted["projectId"].startswith("-"):
            return httpx.Response(400, json={"code": "invalid_body", "message": "That is no project id."})
        self.projects[wanted["projectId"]] = ""
        return httpx.Response(201, json={"projectId": wanted["projectId"], "keys": [self._key(wanted["projectId"])]})

    def _create_key(self, request: httpx.Request) -> httpx.Response:
        project_id = msgspec.json.decode(request.content)["projectId"]
        if project_id not in self.projects:
            return httpx.Response(404, json={"code": "not_found", "message": "There is none."})
        return httpx.Response(201, json=self._key(project_id))

    def _key(self, project_id: str) -> dict[str, str]:
        key = f"key-{len(self.owners)}"
        self.owners[key] = project_id
        return {"kind": "import", "keyId": "1", "key": key}

    def _take(self, request: httpx.Request) -> httpx.Response:
        if self.refusals:
            return self.refusals.pop(0)(request)
        project_id = self.owners[request.headers["authorization"].removeprefix("Bearer ")]
        body = request.content
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        stored = self.stored.setdefault(project_id, set())
        results: list[dict[str, Any]] = []
        for line in body.split(b"\n"):
            event = msgspec.json.decode(line)
            event_id = event["eventId"]
            if "eventType" not in event:
                reason = {"code": "missing_event_type", "message": "Name it.", "pointer": "/eventType"}
                results.append({"eventId": event_id, "status": "rejected", **reason})
            else:
                results.append({"eventId": event_id, "status": "duplicate" if event_id in stored else "accepted"})
                stored.add(event_id)
        counts = {
            status: sum(result["status"] == status for result in results)
            for status in ("accepted", "duplicate", "rejected")
        }
        return httpx.Response(202, json={**counts, "ack": "logged", "results": results})


def post_to(server: FakeGateway) -> Post:
    async def post(path: str, body: bytes, headers: Mapping[str, str], parameters: Mapping[str, str]) -> Reply:
        url = httpx.URL("http://gateway.test", path=path, params=dict(parameters))
        try:
            response = server.handle(httpx.Request("POST", url, content=body, headers=dict(headers)))
        except httpx.TransportError as error:
            raise Unreachable(str(error)) from error
        return Reply(response.status_code, response.headers.get("Retry-After", ""), response.content)

    return post


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> IngestingGateway:
    """What `load` posts to."""
    server = IngestingGateway()

    @asynccontextmanager
    async def posting(_url: str, *, connections: int) -> AsyncIterator[Post]:
        assert connections
        yield post_to(server)

    monkeypatch.setattr(load_module, "posting", posting)
    return server


async def load(path: Path, **options: Any) -> Loaded:
    settings: dict[str, Any] = {"by_project": False, "import_old": False, "key": "given", "quiet": True} | options
    return await run(Load((path,), "http://gateway.test", **settings))


def rows(path: Path, *events: dict[str, Any]) -> Path:
    path.write_bytes(b"\n".join(msgspec.json.encode(event) for event in events))
    return path


def event(number: int, project: str = "a") -> dict[str, Any]:
    return {"eventId": str(number), "eventType": "t", "projectId": project}


@pytest.mark.parametrize("compress", [False, True])
async def test_outcomes_are_counted_and_a_second_load_is_all_duplicates(
    server: IngestingGateway, tmp_path: Path, compress: bool
) -> None:
    path = rows(tmp_path / "x", *(event(n) for n in range(25)), {"eventId": "bad"})
    first = (await load(path, batch_rows=10, compress=compress)).outcome
    assert (first.accepted, first.duplicate, first.rejected, first.rows) == (25, 0, 1, 26)
    assert first.examples == {"missing_event_type": ["bad /eventType: Name it."]}
    again = (await load(path, batch_rows=10, compress=compress)).outcome
    assert (again.accepted, again.duplicate, again.rejected) == (0, 25, 1)
    assert len(server.requests) == 6


async def test_projects_are_created_once_and_known_ones_get_a_key(server: IngestingGateway, tmp_path: Path) -> None:
    events = [event(n, project) for n in range(50) for project in ("a", "b", "old")]
    loaded = await load(rows(tmp_path / "x", *events), by_project=True, key="admin", batch_rows=5)
    assert loaded.outcome.accepted == 150
    assert loaded.created_projects == 2
    assert {project: len(ids) for project, ids in server.stored.items()} == {"a": 50, "b": 50, "old": 50}
    paths = [request.url.path for request in server.requests]
    assert (paths.count("/v1/projects"), paths.count("/v1/keys")) == (3, 1)


async def test_a_load_made_again_asks_once_for_each_project(server: IngestingGateway, tmp_path: Path) -> None:
    path = rows(tmp_path / "x", *(event(n, f"p{n}") for n in range(40)))
    await load(path, by_project=True, key="admin", batch_rows=5)
    asked = [request.url.path for request in server.requests]
    assert (asked.count("/v1/projects"), asked.count("/v1/keys")) == (40, 0)
    server.requests.clear()
    again = await load(path, by_project=True, key="admin", batch_rows=5)
    assert (again.created_projects, again.outcome.duplicate) == (0, 40)
    asked = [request.url.path for request in server.requests]
    # Before the first answer nobody knows.
    assert asked.count("/v1/projects") <= CONCURRENT
    assert asked.count("/v1/keys") == 40


async def test_projects_that_are_there_and_that_are_not_in_turns(server: IngestingGateway, tmp_path: Path) -> None:
    server.projects |= dict.fromkeys((f"p{n}" for n in range(0, 40, 2)), "")
    path = rows(tmp_path / "x", *(event(n, f"p{n}") for n in range(40)))
    loaded = await load(path, by_project=True, key="admin", batch_rows=5)
    assert (loaded.created_projects, loaded.outcome.accepted) == (20, 40)


async def test_a_project_that_cannot_be_made_spoils_only_its_own_rows(server: IngestingGateway, tmp_path: Path) -> None:
    path = rows(tmp_path / "x", event(1, "-bad"), event(2, "good"), event(3, "-bad"), {"eventId": "4"})
    outcome = (await load(path, by_project=True)).outcome
    assert (outcome.accepted, outcome.rejected) == (1, 3)
    assert dict(outcome.reasons) == {"invalid_project": 2, "missing_project": 1}


async def test_import_is_asked_for_only_when_wanted(server: IngestingGateway, tmp_path: Path) -> None:
    path = rows(tmp_path / "x", event(1))
    await load(path)
    await load(path, import_old=True)
    assert [dict(request.url.params) for request in server.requests] == [{}, {"import": "true"}]


def requests_with(server: FakeGateway, pauses: list[float], *, patience_s: float = 60.0) -> Requests:
    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    return Requests(post_to(server), patience_s=patience_s, pause=pause, jitter=lambda: 0.0)


def overloaded(_: httpx.Request) -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": "7"}, json={"code": "overloaded", "message": "Later."})


def cut(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


async def test_it_comes_again_when_asked_to_and_when_the_connection_breaks(server: IngestingGateway) -> None:
    server.refusals = [overloaded, cut, cut]
    pauses: list[float] = []
    requests = requests_with(server, pauses)
    headers = {"Authorization": "Bearer given"}
    reply = await requests.post("/v1/events/batch", msgspec.json.encode(event(1)), headers, {})
    assert reply.status == 202
    assert pauses == [7.0, 0.1, 0.2]
    assert (requests.made, requests.repeated) == (4, 3)


async def test_patience_ends(server: IngestingGateway) -> None:
    server.refusals = [overloaded] * 100
    pauses: list[float] = []
    with pytest.raises(Failure, match="gave up on the gateway after 14 s: it answers 503"):
        await requests_with(server, pauses, patience_s=20.0).post("/v1/events/batch", b"", {}, {})
    assert pauses == [7.0, 7.0]


async def test_a_refused_key_ends_the_load(server: IngestingGateway, tmp_path: Path) -> None:
    refusal = httpx.Response(401, json={"code": "invalid_key", "message": "Nobody made that key."})
    server.refusals = [lambda _: refusal] * 100
    with pytest.raises(Failure, match="Nobody made that key"):
        await load(rows(tmp_path / "x", *(event(n) for n in range(100))), batch_rows=1)


async def test_a_forgotten_key_is_made_again(server: IngestingGateway) -> None:
    keys = ProjectKeys(requests_with(server, []), "admin", max_keys=1)
    first = await keys.key_of("a")
    assert await keys.key_of("a") == first
    await keys.key_of("b")
    assert await keys.key_of("a") != first


async def test_a_key_that_will_soon_expire_is_made_again(server: IngestingGateway) -> None:
    now = [0.0]
    keys = ProjectKeys(requests_with(server, []), "admin", clock=lambda: now[0])
    first = await keys.key_of("a")
    now[0] = RENEWED_AFTER_S
    assert await keys.key_of("a") == first
    now[0] += 1
    assert await keys.key_of("a") != first


@pytest.mark.parametrize("how", [{"by_project": True}, {"import_project": "old"}])
async def test_a_load_outlives_its_keys(server: IngestingGateway, tmp_path: Path, how: dict[str, Any]) -> None:
    expired = httpx.Response(401, json={"code": "invalid_key", "message": "This key has expired."})
    server.refusals = [lambda _: expired] * CONCURRENT
    loaded = await load(rows(tmp_path / "x", *(event(n) for n in range(40))), batch_rows=1, key="admin", **how)
    assert (loaded.outcome.accepted, loaded.outcome.rejected) == (40, 0)


def test_a_pause_is_bounded_and_spread() -> None:
    assert pause_before(0, None, jitter=1.0) == 0.1
    assert pause_before(100, None, jitter=1.0) == 30.0
    assert pause_before(0, 3600.0, jitter=0.0) == 30.0
    assert pause_before(0, 4.0, jitter=1.0) == 5.0


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Load]:
    """What the command has run."""
    wanted: list[Load] = []

    async def run_noted(load: Load) -> Loaded:
        wanted.append(load)
        return await run(load)

    monkeypatch.setattr(load_module, "run", run_noted)
    return wanted


def test_the_command_uses_the_write_key_and_does_not_import(
    gateway: FakeGateway, data: Path, ran: list[Load], server: IngestingGateway
) -> None:
    server.owners["the-write-key"] = "default"
    result = invoke("load", rows(data / "x", event(1), event(1)), "--data", data)
    assert result.exit_code == 0
    assert "2 events" in result.output
    assert "1 accepted, 1 duplicate, 0 rejected" in result.output
    assert (ran[0].key, ran[0].import_old) == ("the-write-key", False)


def test_an_import_key_is_made_for_an_import(
    gateway: FakeGateway, data: Path, ran: list[Load], server: IngestingGateway
) -> None:
    server.projects["default"] = ""
    assert invoke("load", rows(data / "x", event(1)), "--data", data, "--import").exit_code == 0
    assert (ran[0].key, ran[0].import_old) == ("the-admin-key", True)
    assert [request.url.path for request in server.requests] == ["/v1/keys", "/v1/events/batch"]
    assert server.bodies()[0] == {"projectId": "default", "kind": "import", "expiresInSeconds": 3600}
    assert server.stored == {"default": {"1"}}


def test_by_project_imports_with_the_admin_key(
    gateway: FakeGateway, data: Path, ran: list[Load], server: IngestingGateway
) -> None:
    result = invoke("load", rows(data / "x", event(1)), "--data", data, "--by-project", "--json")
    assert msgspec.json.decode(result.output)["createdProjects"] == 1
    assert (ran[0].key, ran[0].import_old) == ("the-admin-key", True)


def test_nothing_but_rejections_is_a_failure(gateway: FakeGateway, data: Path, server: IngestingGateway) -> None:
    (data / "x").write_text("no json\n")
    result = invoke("load", data / "x", "--data", data)
    assert result.exit_code == 1
    assert "invalid_json: 1" in result.output


def test_a_file_that_is_not_there_is_a_usage_error(data: Path) -> None:
    assert invoke("load", data / "nothing", "--data", data).exit_code == 2
