"""Where a request may carry its key: Bearer, Basic `key:`, X-API-Key, `?key=`, `?writeKey=`, in this order."""

import base64
import binascii
from collections.abc import Mapping
from urllib.parse import parse_qsl

from gateway.errors import ApiError

MAX_QUERY_FIELDS = 32
KEY_PARAMETERS = ("key", "writeKey")

Headers = Mapping[bytes, bytes]


def parse_query(query_string: bytes) -> dict[str, str]:
    """Query parameters, the last of a name winning. Raises `ApiError` for too many of them."""
    if not query_string:
        return {}
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError as error:
        raise ApiError("invalid_parameter", f"More than {MAX_QUERY_FIELDS} query parameters.") from error
    return dict(pairs)


def find_key(headers: Headers, query: Mapping[str, str]) -> str:
    """The text of the key, unchecked. Raises `ApiError`: missing_key, or malformed_key for broken Basic."""
    authorization = headers.get(b"authorization")
    if authorization:
        scheme, _, value = authorization.partition(b" ")
        match scheme.lower():
            case b"bearer":
                return value.strip().decode("latin-1")
            case b"basic":
                return _basic_user(value)
    header = headers.get(b"x-api-key")
    if header:
        return header.decode("latin-1")
    for name in KEY_PARAMETERS:
        if name in query:
            return query[name]
    raise ApiError("missing_key")


def _basic_user(value: bytes) -> str:
    try:
        return base64.b64decode(value.strip(), validate=True).decode("latin-1").partition(":")[0]
    except binascii.Error as error:
        raise ApiError("malformed_key", "Authorization: Basic is not valid base64 of `key:`.") from error
