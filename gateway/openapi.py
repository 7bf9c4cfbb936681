"""The OpenAPI 3.1 document, made of the operations and of the types that the routes decode and encode."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.endpoint import Access, Operation
from gateway.errors import ERRORS, ErrorBody

TITLE = "Analytics events"
DESCRIPTION = """Post events, read them back. A 202 means that the event is safe, and it is stored once however
often it is sent: send it again after any error, with the same eventId."""

_REF_TEMPLATE = "#/components/schemas/{name}"

_GENERIC = re.compile(r"(?<=\w)(_[\w.]+_|\[.+\])$")
"""What stands behind the name of a generic type: its arguments, in a key or in a title."""

_ACCESS_WORDS: dict[Access, str] = {
    "open": "No key is needed.",
    "write": "Needs a write, import or admin key of the project.",
    "read": "Needs a read or admin key; the system's admin key also names a projectId.",
    "admin": "Needs an admin key; one that is bound to a project reaches this project alone.",
    "system": "Needs the system's admin key.",
}

_KEY_ERRORS = ("missing_key", "malformed_key", "invalid_key", "key_kind_not_allowed")
_GATED_ERRORS = (*_KEY_ERRORS, "overloaded", "unavailable")

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer <key>"},
    "basic": {"type": "http", "scheme": "basic", "description": "The key as user name, no password"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "query": {"type": "apiKey", "in": "query", "name": "key", "description": "Also taken as writeKey"},
}


def document(operations: Sequence[Operation], *, version: str) -> dict[str, Any]:
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(public_path(operation.path), {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "description": DESCRIPTION, "version": version},
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": _SECURITY_SCHEMES},
    }


def public_path(path: str) -> str:
    """The path as OpenAPI writes it: without the router's converters."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


class _Schemas:
    """The schemas of all types that operations name, each once."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._types: list[Any] = [ErrorBody]
        for operation in operations:
            candidates = [operation.query, operation.body, *operation.answers.values()]
            self._types += [t for t in candidates if t is not None and not isinstance(t, str) and t not in self._types]
        described = msgspec.json.schema_components(self._types, ref_template=_REF_TEMPLATE)
        self._schemas: list[dict[str, Any]]
        self.components: dict[str, Any]
        self._schemas, self.components = _without_arguments(described)
        assert len(self.components) == len(described[1]), "two types have one name"

    def of(self, wanted: Any) -> dict[str, Any]:
        return self._schemas[self._types.index(wanted)]

    def fields_of(self, wanted: Any) -> tuple[dict[str, Any], list[str]]:
        """The properties of a struct and the names of those that must be given."""
        name = self.of(wanted)["$ref"].rsplit("/", 1)[1]
        schema = self.components[name]
        return schema["properties"], schema.get("required", [])


def _without_arguments(node: Any) -> Any:
    """Schemas in which generic types go by their own names: msgspec adds their arguments, as in `Events_EventView_`."""
    if isinstance(node, dict):
        return {
            _GENERIC.sub("", name): _GENERIC.sub("", value)
            if name in ("$ref", "title") and isinstance(value, str)
            else _without_arguments(value)
            for name, value in node.items()
        }
    return [_without_arguments(value) for value in node] if isinstance(node, list | tuple) else node


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "description": _ACCESS_WORDS[operation.access],
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, schemas)],
        "responses": _responses(operation, schemas),
        "security": [] if operation.access == "open" else [{name: []} for name in _SECURITY_SCHEMES],
    }
    if operation.body is not None:
        schema = schemas.of(operation.body)
        content = {content_type: {"schema": schema} for content_type in operation.body_content_types}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", public_path(operation.path).removeprefix("/v1"))
    return "_".join([operation.method.lower(), *words])


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", public_path(operation.path))
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(operation: Operation, schemas: _Schemas) -> list[dict[str, Any]]:
    properties, required = schemas.fields_of(operation.query)
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in properties.items()
    ]


def _responses(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        content: dict[str, Any] = (
            {answer: {}} if isinstance(answer, str) else {"application/json": {"schema": schemas.of(answer)}}
        )
        if status == 200:
            content |= {content_type: {} for content_type in operation.formats}
        responses[str(status)] = {"description": operation.summary, "content": content}
    error = {"application/json": {"schema": schemas.of(ErrorBody)}}
    for error_status, codes in _errors_by_status(operation).items():
        if error_status not in responses:
            listed = "; ".join(f"`{code}`: {ERRORS[code].message}" for code in codes)
            responses[error_status] = {"description": listed, "content": error}
    return responses


def _errors_by_status(operation: Operation) -> dict[str, list[str]]:
    shared = ("invalid_parameter", *(() if operation.access == "open" else _GATED_ERRORS))
    by_status: dict[str, list[str]] = {}
    for code in dict.fromkeys([*operation.errors, *shared]):
        by_status.setdefault(str(ERRORS[code].status), []).append(code)
    return dict(sorted(by_status.items()))
