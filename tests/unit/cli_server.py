"""A gateway for the command line's tests: routes as functions, requests recorded, no socket."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result

from analytics_actors.cli import server_options
from analytics_actors.cli.api import Api
from analytics_actors.cli.main import cli
from analytics_actors.up.connection import Connection

Handler = Callable[[httpx.Request], httpx.Response]


class FakeGateway:
    """Answers by method and path; anything else is 404. Another kind of server when `is_one` is False."""

    def __init__(self) -> None:
        self.is_one = True
        self.routes: dict[tuple[str, str], Handler] = {}
        self.requests: list[httpx.Request] = []

    def answer(self, method: str, path: str, body: Any, *, status: int = 200) -> None:
        self.routes[method, path] = lambda _: httpx.Response(status, json=body)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        route = self.routes.get((request.method, request.url.path))
        if route is None:
            return httpx.Response(404, json={"code": "not_found", "message": "There is no such thing."})
        answer = route(request)
        if self.is_one:
            answer.headers["x-request-id"] = "1"
        return answer

    @property
    def keys(self) -> list[str]:
        return [request.headers["authorization"].removeprefix("Bearer ") for request in self.requests]

    def bodies(self) -> list[Any]:
        return [msgspec.json.decode(request.content) for request in self.requests if request.content]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    fake = FakeGateway()
    transport = httpx.MockTransport(fake.handle)
    monkeypatch.setattr(server_options, "Api", lambda url, key: Api(url, key, transport=transport))
    return fake


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a connection.json."""
    connection = Connection(
        gateway_url="http://gateway.test",
        dashboard_url="http://dashboard.test",
        project_id="default",
        admin_key="the-admin-key",
        write_key="the-write-key",
        read_key="the-read-key",
        postgres_url="postgresql://postgres:secret@127.0.0.1:1/postgres",
        redis_url="redis://:secret@127.0.0.1:1/0",
        lake_url="file:///lake",
        ray_address="127.0.0.1:1",
        ray_token_path="/token",
        pid=1,
    )
    connection.save(tmp_path / "connection.json")
    return tmp_path


def invoke(*words: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False, **options)
