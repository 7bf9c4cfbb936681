"""The text of an API key: `aa_<kind>_<43 base64url characters of 32 random bytes><6 hex digits of CRC-32>`.

The check digits tell a key that was mistyped or cut off from one that nobody made, without asking the
database. Only the SHA-256 of a key is kept: a fast hash is right for 256 random bits.
"""

import hashlib
import re
import secrets
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Literal, get_args

KeyKind = Literal["write", "read", "import", "admin"]
KEY_KINDS: tuple[KeyKind, ...] = get_args(KeyKind)

_SECRET_BYTES = 32
_FORM = re.compile(rf"(aa_({'|'.join(KEY_KINDS)})_[A-Za-z0-9_-]{{43}})([0-9a-f]{{6}})")


def make_key(kind: KeyKind, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    body = f"aa_{kind}_{urlsafe_b64encode(random_bytes(_SECRET_BYTES)).decode().rstrip('=')}"
    return body + _check_digits(body)


def is_well_formed(key: str) -> bool:
    """False for a key with a typo: no such key was ever made."""
    match = _FORM.fullmatch(key)
    return match is not None and _check_digits(match[1]) == match[3]


def hash_key(key: str) -> bytes:
    """What the database keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _check_digits(body: str) -> str:
    return f"{zlib.crc32(body.encode()) & 0xFFFFFF:06x}"
