"""A route as a value: what it takes, what it answers, who may call it. Routing and OpenAPI are made of it.

Handlers get a `Call` in which key, project, query and body were checked already.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import inspect
from starlette.requests import Request
from starlette.routing import Route

from gateway.answers import HEADERS, KEY, Answer
from gateway.body import BodyBudget, BodyReader
from gateway.credentials import KEY_PARAMETERS, find_key, parse_query
from gateway.errors import ApiError
from gateway.query_gate import QueryGate
from gateway.services import KeyInfo, Services

Access = Literal["open", "write", "read", "admin", "system"]
"""Who may call: everybody; write, import and admin keys; read and admin keys; admin keys; the admin key that is
bound to no project. A key that is bound to a project reaches this project alone."""

MAX_ADMIN_BODY_BYTES = 64 * 1024


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route without query parameters."""


class ProjectQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`projectId` is needed with the system's admin key; any other key is bound to its project."""

    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a read or admin route, checked."""

    services: Services
    request: Request
    key: KeyInfo | None
    query: Any
    body: Any

    @property
    def caller(self) -> KeyInfo:
        """The key of a route that asks for one."""
        assert self.key is not None
        return self.key

    async def project(self, named: str | None) -> str:
        """The project that the call is about: the key's, or the one that the system's admin key names."""
        project_id = await self.optional_project(named)
        if project_id is None:
            raise ApiError("invalid_parameter", "With the system's admin key name a projectId.", pointer="/projectId")
        return project_id

    async def optional_project(self, named: str | None) -> str | None:
        """As `project`; None, meaning all projects, when the system's admin key names none."""
        own = self.caller.project_id
        if own is not None and named is not None and named != own:
            raise ApiError("project_mismatch", "The key belongs to another project.", pointer="/projectId")
        if own is None and named is not None:
            await self.services.projects.check(named)
        return named if own is None else own


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the contract says of a route. `answers` gives for each status the type, or the content type, of the body;
    `formats` are the content types that the body of a 200 has instead when the request asks for them."""

    method: str
    path: str
    summary: str
    access: Access
    answers: Mapping[int, Any]
    formats: tuple[str, ...] = ()
    query: type[msgspec.Struct] = NoQuery
    body: Any = None
    body_content_types: tuple[str, ...] = ("application/json",)
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Operation):
    """A route of the router: an operation and what handles it."""

    handler: Handler


def check_access(access: Access, key: KeyInfo) -> None:
    """Raises `ApiError` key_kind_not_allowed."""
    match access:
        case "write":
            allowed = key.kind != "read" and key.project_id is not None
        case "read":
            allowed = key.kind in ("read", "admin")
        case "admin":
            allowed = key.kind == "admin"
        case "system":
            allowed = key.kind == "admin" and key.project_id is None
        case "open":
            allowed = True
    if not allowed:
        raise ApiError("key_kind_not_allowed", _NEEDED[access])


_NEEDED = {
    "write": "Events are written with a write, import or admin key of a project.",
    "read": "This needs a read or admin key.",
    "admin": "This needs an admin key.",
    "system": "This needs the system's admin key, which is bound to no project.",
}


def to_route(endpoint: Endpoint, services: Services, gate: QueryGate, budget: BodyBudget) -> Route:
    """The Starlette route that checks a request against the endpoint and calls its handler."""

    async def handle(request: Request) -> Answer:
        parameters = parse_query(request.scope["query_string"])
        # The router has matched the path as it was sent (see `Edge`).
        names = request.scope["path_params"] = {name: unquote(text) for name, text in request.path_params.items()}
        _refuse_nul(names)
        if endpoint.access == "open":
            query = _convert_query(parameters, endpoint.query)
            return await endpoint.handler(Call(services, request, None, query, None))
        key = await services.keys.lookup(find_key(request.scope[HEADERS], parameters))
        request.scope[KEY] = key
        check_access(endpoint.access, key)
        query = _convert_query(parameters, endpoint.query)
        # What the system's admin key asks for a project is that project's; what it asks for itself is nobody's.
        async with gate.slot(key.project_id or parameters.get("projectId", "")):
            body = None if endpoint.body is None else await _read_body(request, endpoint.body, budget, key)
            return await endpoint.handler(Call(services, request, key, query, body))

    return Route(endpoint.path, handle, methods=[endpoint.method])


def _convert_query(parameters: Mapping[str, str], to: type[msgspec.Struct]) -> msgspec.Struct:
    given = {name: value for name, value in parameters.items() if name not in KEY_PARAMETERS}
    _refuse_nul(given)
    try:
        query = msgspec.convert(given, to, strict=False)
    except msgspec.ValidationError as error:
        message, pointer = _explain(error, to)
        raise ApiError("invalid_parameter", message, pointer=pointer) from error
    except ValueError as error:
        # A number of seconds beyond the year 9999. Of what parameter, msgspec does not say.
        raise ApiError("invalid_parameter", f"A time is outside the years 1 to 9999: {error}.") from error
    _refuse_times_beyond_years(query)
    return query


def _refuse_nul(parameters: Mapping[str, str]) -> None:
    """PostgreSQL does not even take it to compare with."""
    for name, value in parameters.items():
        if "\0" in value:
            message = f"{name} has the character U+0000, which nothing here has."
            raise ApiError("invalid_parameter", message, pointer=f"/{name}")


def _refuse_times_beyond_years(query: msgspec.Struct) -> None:
    """By their offsets some times of the years 1 and 9999 are outside them in UTC, where no driver can go."""
    for name, parameter in zip(query.__struct_fields__, query.__struct_encode_fields__, strict=True):
        value = getattr(query, name)
        if isinstance(value, datetime) and not _is_within_years(value):
            raise ApiError("invalid_parameter", f"{parameter} is outside the years 1 to 9999.", pointer=f"/{parameter}")


def _is_within_years(time: datetime) -> bool:
    """Whether an aware time can be said in UTC."""
    try:
        time.astimezone(UTC)
    except OverflowError:
        return False
    return True


async def _read_body(request: Request, to: Any, budget: BodyBudget, key: KeyInfo) -> Any:
    reader = BodyReader(budget, max_bytes=MAX_ADMIN_BODY_BYTES)
    try:
        reader.check_announced(request.scope[HEADERS].get(b"content-length"))
        raw = await reader.read(request.receive, key.project_id)
        return msgspec.json.decode(raw, type=to)
    except msgspec.ValidationError as error:
        message, pointer = _explain(error, to)
        raise ApiError("invalid_body", message, pointer=pointer) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid_json", f"This is not valid JSON: {error}.") from error
    finally:
        reader.release()


_OF_TIMES = {
    "Invalid RFC3339 encoded datetime": "This is no time: send it as 2026-11-20T00:00:00Z",
    "Invalid RFC3339 encoded date": "This is no day: send it as 2026-11-20",
}
"""Of msgspec's messages those that name a standard instead of what to write."""


def _explain(error: msgspec.ValidationError, to: Any) -> tuple[str, str | None]:
    """msgspec says "… - at `$.a.b[0]`": the sentence, and the place as a JSON pointer."""
    message, _, place = str(error).partition(" - at `$")
    message = _OF_TIMES.get(message, message)
    pointer = place.rstrip("`").replace("[", "/").replace("]", "").replace(".", "/")
    if message.startswith("Invalid enum value"):
        kind = inspect.type_info(to)
        fields = kind.fields if isinstance(kind, inspect.StructType) else ()
        choices = [value for field in fields if pointer == f"/{field.encode_name}" for value in _choices(field.type)]
        message += f": {', '.join(map(str, choices))} are possible" if choices else ""
    return f"{message}.", pointer or None


def _choices(kind: inspect.Type) -> list[Any]:
    match kind:
        case inspect.LiteralType(values):
            return list(values)
        case inspect.Metadata(inner):
            return _choices(inner)
        case inspect.UnionType(kinds):
            return [value for each in kinds for value in _choices(each)]
    return []
