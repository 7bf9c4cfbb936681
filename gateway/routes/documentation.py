"""The contract for machines (`/openapi.json`) and for people (`/docs`, a page that loads nothing from elsewhere)."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import msgspec

from gateway.answers import Answer
from gateway.endpoint import Call, Endpoint, Handler

_PAGE_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
)


def page(_name: str = "docs.html") -> Handler:
    """The page is static; it draws what it finds in /openapi.json."""
    html = files("gateway").joinpath("routes", _name).read_bytes()

    async def handler(_: Call) -> Answer:
        return Answer(200, html, content_type=b"text/html; charset=utf-8", headers=[_PAGE_POLICY])

    return handler


class OpenApi:
    """The document is made when all endpoints are known, these among them."""

    def __init__(self) -> None:
        self._body = b"{}"

    def publish(self, document: Mapping[str, Any]) -> None:
        self._body = msgspec.json.encode(document)

    async def __call__(self, _: Call) -> Answer:
        return Answer(200, self._body)


def endpoints(openapi: OpenApi) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/openapi.json",
            summary="This contract, as OpenAPI 3.1",
            access="open",
            answers={200: dict[str, Any]},
            handler=openapi,
        ),
        Endpoint(
            method="GET",
            path="/docs",
            summary="This contract, as a page to read",
            access="open",
            answers={200: "text/html"},
            handler=page(),
        ),
    ]
