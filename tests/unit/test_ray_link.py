"""The gateway's questions to actors, with an actor that is none."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from config.settings import Settings
from gateway.ray_link import RayLink
from gateway.shard_stream import LinkError


@pytest.fixture
def asked() -> "Future[Any]":
    """What the actor will answer."""
    return Future()


@pytest.fixture
def link(asked: "Future[Any]") -> RayLink:
    reference = SimpleNamespace(future=lambda: asked)
    link = RayLink(Settings())
    link._actors["somebody"] = SimpleNamespace(question=SimpleNamespace(remote=lambda: reference))
    link._joined.set()
    return link


async def test_an_answer_and_an_error(link: RayLink, asked: "Future[Any]") -> None:
    asked.set_result(7)
    assert await link.ask("somebody", "question", deadline_s=1) == 7
    failed: Future[Any] = Future()
    failed.set_exception(ActorUnavailableError("it restarts", None))
    reference = SimpleNamespace(future=lambda: failed)
    link._actors["somebody"] = SimpleNamespace(question=SimpleNamespace(remote=lambda: reference))
    with pytest.raises(LinkError, match="it restarts"):
        await link.ask("somebody", "question", deadline_s=1)


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_nobody_waits_for_an_answer_that_is_not_wanted_any_more(
    link: RayLink, asked: "Future[Any]", *, is_cancelled: bool
) -> None:
    call = asyncio.ensure_future(link.ask("somebody", "question", deadline_s=30 if is_cancelled else 0.01))
    if is_cancelled:
        await asyncio.sleep(0)
        call.cancel()
    with pytest.raises(asyncio.CancelledError if is_cancelled else LinkError):
        await call
    await asyncio.sleep(0)
    assert asked.cancelled(), "an error that comes now would be nobody's, and be logged as such"
