"""The one error table of the HTTP edge, and the exception that carries a row of it to the client.

`ERRORS` says for every code its status, how long to wait before a retry makes sense (None: repeating the
same request will not help), the level of its log line, a sentence for people and a hint what to do.
Codes are part of the API: they are added to, never renamed. The codes of single events (`Rejection`)
stand in the same table, because `POST /v1/events` answers with them as the error of the request.
"""

import logging
from typing import NamedTuple

import msgspec

from gateway.rows import Rejection


class ErrorKind(NamedTuple):
    status: int
    message: str
    hint: str | None = None
    retry_after_s: int | None = None
    log_level: int = logging.INFO


class ErrorBody(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The JSON of every error answer. `pointer` (RFC 6901) is relative to the event or body it speaks of."""

    code: str
    message: str
    hint: str | None = None
    pointer: str | None = None
    request_id: str


_REQUEST_ERRORS = {
    "invalid_json": ErrorKind(400, "This is not valid JSON.", "Send RFC 8259 JSON in UTF-8."),
    "invalid_body": ErrorKind(400, "The body does not have the expected form.", "See /openapi.json for its form."),
    "invalid_parameter": ErrorKind(400, "A query parameter cannot be used.", "See /openapi.json for its form."),
    "inflate_failed": ErrorKind(
        400, "The body cannot be decompressed.", "Check that Content-Encoding names what was applied, once."
    ),
    "missing_key": ErrorKind(401, "The request carries no key.", "Send the header Authorization: Bearer <key>."),
    "malformed_key": ErrorKind(401, "This does not have the form of a key.", "Copy the key again, in full."),
    "invalid_key": ErrorKind(401, "This key is unknown or has been revoked.", "Make a new one with POST /v1/keys."),
    "key_kind_not_allowed": ErrorKind(403, "This kind of key may not do this.", "Use a key of the kind it asks for."),
    "not_found": ErrorKind(404, "There is no such thing here."),
    "method_not_allowed": ErrorKind(405, "This route does not take this method.", "The Allow header lists those."),
    "timeout": ErrorKind(408, "The request was not complete in time.", "Send it again.", 1),
    "conflict": ErrorKind(409, "This exists already."),
    "body_too_large": ErrorKind(413, "The body is larger than the limit.", "Send less in a request."),
    "too_many_events": ErrorKind(413, "The request has more events than the limit.", "Split it into several."),
    "sql_invalid": ErrorKind(400, "This is not SQL that can be run.", "See the message for the place."),
    "sql_not_allowed": ErrorKind(
        400, "This SQL is not allowed.", "Send one SELECT over the table events, with functions of values."
    ),
    "sql_failed": ErrorKind(422, "The query failed on the events.", "TRY_CAST and TRY give NULL for what fails."),
    "query_out_of_memory": ErrorKind(
        422, "The query needs more memory than it may have.", "Ask for a shorter time range, fewer columns or groups."
    ),
    "query_timeout": ErrorKind(
        422, "The query took longer than it may.", "Ask for a shorter time range, or for less of each event."
    ),
    "query_too_large": ErrorKind(
        422, "The query reads more than fits on this machine.", "Ask for a shorter time range: timestamp >= …"
    ),
    "unsupported_encoding": ErrorKind(
        415, "This content encoding is not taken.", "Use one of gzip, zstd, br, deflate or none, and only once."
    ),
    "invalid_http": ErrorKind(400, "This is not a valid HTTP/1.1 request."),
    "header_too_large": ErrorKind(431, "The request's headers are larger than the limit.", "Send less in headers."),
    "overloaded": ErrorKind(
        503, "There is no room for this request now.", "Send it again after Retry-After.", 1, logging.WARNING
    ),
    "spool_full": ErrorKind(
        503,
        "Events cannot be kept safe now: the log is away and the spool is full.",
        "Send it again after Retry-After.",
        10,
        logging.ERROR,
    ),
    "unavailable": ErrorKind(
        503,
        "A service that this needs is not reachable now.",
        "Send it again after Retry-After; /readyz says which service.",
        2,
        logging.WARNING,
    ),
    "internal_error": ErrorKind(
        500,
        "Something went wrong here that is not your fault.",
        "Send it again; name the requestId if it stays so.",
        2,
        logging.ERROR,
    ),
}

EVENT_ERRORS = {
    "not_an_object": ErrorKind(422, "An event is a JSON object.", "Send one object an event."),
    "missing_event_type": ErrorKind(422, "The event has no eventType.", "Send eventType, 1 to 100 characters."),
    "invalid_field": ErrorKind(422, "A field has the wrong type.", "See /openapi.json for the type of each field."),
    "field_too_long": ErrorKind(422, "A field is longer than its limit.", "Shorten it, or put it into properties."),
    "event_too_large": ErrorKind(413, "The event is larger than the limit.", "Send less in properties."),
    "too_deep": ErrorKind(422, "The event is nested more deeply than the limit.", "Flatten the properties."),
    "too_many_keys": ErrorKind(422, "The event has more keys than the limit.", "Use an array in place of keys."),
    "too_many_values": ErrorKind(422, "The event has more values than the limit.", "Send them in several events."),
    "key_too_long": ErrorKind(422, "A key is longer than the limit.", "Put long text into values, not into keys."),
    "string_too_long": ErrorKind(422, "A string is longer than the limit.", "Shorten it."),
    "nul_character": ErrorKind(422, "A text has the character U+0000, which cannot be stored.", "Remove it."),
    "invalid_unicode": ErrorKind(422, "A text is not valid Unicode.", "Send UTF-8; surrogates only in pairs."),
    "number_out_of_range": ErrorKind(
        422, "A number fits neither a signed 64-bit integer nor a finite double.", "Send it as a string."
    ),
    "invalid_timestamp": ErrorKind(
        422, "The timestamp cannot be read.", "Send ISO 8601 with Z or an offset, or Unix time in s or ms."
    ),
    "timestamp_out_of_range": ErrorKind(
        422,
        "The timestamp is outside the window that is taken.",
        "Check the client's clock; old events are taken when they are imported, with an import or admin key.",
    ),
    "invalid_ip": ErrorKind(422, "The IP address cannot be read.", "Send an IPv4 or IPv6 address, or leave it out."),
    "project_mismatch": ErrorKind(
        403, "The event names another project than the key's.", "Leave projectId out, or use that project's key."
    ),
}

ERRORS = _REQUEST_ERRORS | EVENT_ERRORS


class ApiError(Exception):
    """An error answer. What is not given comes from the code's row in `ERRORS`; an unknown code is a `KeyError`."""

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        pointer: str | None = None,
        hint: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        kind = ERRORS[code]
        self.code = code
        self.status = kind.status
        self.log_level = kind.log_level
        self.message = message or kind.message
        self.hint = hint or kind.hint
        self.pointer = pointer
        self.retry_after_s = kind.retry_after_s if retry_after_s is None else retry_after_s
        super().__init__(f"{code}: {self.message}")

    @classmethod
    def of_event(cls, rejection: Rejection) -> "ApiError":
        """The error of a request that carried one event, which was refused."""
        return cls(rejection.code, rejection.message, pointer=rejection.pointer)

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def body(self, request_id: str) -> bytes:
        return msgspec.json.encode(
            ErrorBody(
                code=self.code,
                message=self.message,
                hint=self.hint,
                pointer=self.pointer or None,
                request_id=request_id,
            )
        )
