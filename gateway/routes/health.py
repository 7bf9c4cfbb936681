"""Whether the process lives, whether it takes events, what it counts, and what the system looks like."""

from typing import Any

import msgspec

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, Handler
from gateway.metrics import CONTENT_TYPE, Exposition
from gateway.recent import Recent
from gateway.services import Readiness, Status

READINESS_TTL_S = 1.0
"""Anybody may ask, and each question goes to every service."""


class Alive(msgspec.Struct):
    status: str = "ok"


_ALIVE = msgspec.json.encode(Alive())


async def healthz(_: Call) -> Answer:
    """Asks nobody: an outage of a dependency is no reason to restart this process."""
    return Answer(200, _ALIVE)


def readyz(status: Status) -> Handler:
    readiness = Recent(status.readiness, ttl_s=READINESS_TTL_S)

    async def handler(_: Call) -> Answer:
        found = await readiness.get()
        return json_answer(found, status=200 if found.accepting else 503)

    return handler


async def show_status(call: Call) -> Answer:
    return json_answer(await call.services.status.snapshot())


def metrics(exposition: Exposition) -> Handler:
    async def handler(_: Call) -> Answer:
        return Answer(200, await exposition.text(), content_type=CONTENT_TYPE.encode())

    return handler


def endpoints(exposition: Exposition, status: Status) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/healthz",
            summary="Whether this process is alive",
            access="open",
            answers={200: Alive},
            handler=healthz,
        ),
        Endpoint(
            method="GET",
            path="/readyz",
            summary="Whether events can be accepted (200) or not (503), and the state of each dependency",
            access="open",
            answers={200: Readiness, 503: Readiness},
            handler=readyz(status),
        ),
        Endpoint(
            method="GET",
            path="/metrics",
            summary="Metrics in Prometheus' text format",
            access="open",
            answers={200: CONTENT_TYPE},
            handler=metrics(exposition),
        ),
        Endpoint(
            method="GET",
            path="/v1/status",
            summary="Gateways, shards and services as they are now",
            access="system",
            answers={200: dict[str, Any]},
            handler=show_status,
        ),
    ]
