"""The gateway's HTTP API as the commands use it: a deadline for every call, a sentence for every failure."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from analytics_actors.cli.failure import Failure

DEADLINE_S = 30.0
PATIENT_S = 600.0
"""For what has a deadline of its own, which is a setting of the server's."""


NO_GATEWAY = "the answer is not that of a gateway: is the URL right?"
_EVERY_ANSWER_HAS = "x-request-id"


class ApiFailure(Failure):
    """The gateway answered with an error; `code` is that of its error table."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Answer(dict[str, Any]):
    """A gateway's JSON object. Asked for a member that it has not, it raises `Failure`: it is another server's."""

    def __missing__(self, _name: str) -> Any:
        raise Failure(NO_GATEWAY)


class Api:
    """One gateway, one key. Close it, or use it as a context."""

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self._client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=DEADLINE_S, transport=transport
        )

    def get(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON. Parameters that are None are left out. Raises `Failure`."""
        return self._call("GET", path, parameters=parameters)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("POST", path, body=body)

    def post_for_bytes(
        self, path: str, body: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[bytes, Mapping[str, str]]:
        """The content of a good answer, whatever it is, and the answer's headers."""
        response = self._send("POST", path, parameters=parameters, body=body, deadline_s=PATIENT_S)
        if response.status_code != 200:
            answer_of(response.status_code, response.content)
        return response.content, response.headers

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("PUT", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("PATCH", path, body=body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def _call(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        response = self._send(method, path, parameters=parameters, body=body)
        return answer_of(response.status_code, response.content)

    def _send(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        deadline_s: float = DEADLINE_S,
    ) -> httpx.Response:
        wanted = {name: value for name, value in (parameters or {}).items() if value is not None}
        try:
            response = self._client.request(method, path, params=wanted or None, json=body, timeout=deadline_s)
        except httpx.TimeoutException as error:
            raise Failure(f"{self.url} did not answer within {deadline_s:g} s") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Failure(f"cannot reach {self.url}: {error}; is it up? (`analytics-actors up`)") from error
        if response.is_success and _EVERY_ANSWER_HAS not in response.headers:
            raise Failure(NO_GATEWAY)
        return response

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._client.close()


def answer_of(status: int, content: bytes) -> Any:
    """The `Answer` of a good answer. Raises `ApiFailure` for the others, in the gateway's own words, and `Failure`
    when a good one is no JSON object."""
    try:
        answer = msgspec.json.decode(content) if content else {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if 200 <= status < 300:
            raise Failure(NO_GATEWAY) from error
        answer = {}
    if 200 <= status < 300:
        if not isinstance(answer, dict):
            raise Failure(NO_GATEWAY)
        return Answer(answer)
    fields = answer if isinstance(answer, dict) else {}
    code = str(fields.get("code", "unknown"))
    words = str(fields.get("message", "The gateway answers with an error."))
    if fields.get("hint"):
        words += f" {fields['hint']}"
    raise ApiFailure(status, code, f"{words} ({status} {code})")
