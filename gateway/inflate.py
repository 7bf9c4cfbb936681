"""From a request body as sent to its plain bytes, never holding more than the cap allows.

Every format is inflated in steps whose output is bounded (`_STEP_BYTES`; for zstd, which cannot be asked
for that, by the size of its input), and the sum is checked after each: a bomb is stopped where it passes
the cap. The cap is the smaller of `max_bytes` and `MAX_RATIO` times what was sent. After each step there is a
pause, in which the caller may refuse what has come of it.
"""

import zlib
from collections.abc import Callable, Generator, Iterator

import brotli
import zstandard

from gateway.errors import ApiError
from gateway.steps import Steps, run_to_end

MIB = 1024 * 1024

MAX_RATIO = 200
"""Above 1 MiB a body may not inflate by more than this; JSON events reach 10 to 40."""

MAX_MEMBERS = 10_000
"""gzip members or zstd frames in one body: empty ones would cost time and add nothing to the sum."""

ZSTD_WINDOW_BYTES = 8 * MIB
"""What RFC 9659 allows for Content-Encoding: zstd."""

GZIP_MAGIC = b"\x1f\x8b"

_STEP_BYTES = 64 * 1024
_ZSTD_INPUT_BYTES = 256
"""A zstd block of 4 bytes can stand for 128 KiB, so a step of this makes at most 8 MiB."""


def inflate(body: bytes, content_encoding: str | None, *, max_bytes: int) -> bytes:
    """The plain body. Raises `ApiError`: unsupported_encoding, inflate_failed or body_too_large.

    A body without a Content-Encoding that begins as gzip does is taken for gzip: some clients forget the
    header, and no JSON begins so.
    """
    return run_to_end(inflate_steps(body, content_encoding, max_bytes=max_bytes))


def inflate_steps(body: bytes, content_encoding: str | None, *, max_bytes: int) -> Steps[bytes]:
    """As `inflate`, with a pause after each piece. A body that is plain already adds nothing and has no pause."""
    encoding = _encoding_of(content_encoding)
    if encoding == "identity":
        if not body.startswith(GZIP_MAGIC):
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            return body
        encoding = "gzip"
    steps = _STEPS[encoding](memoryview(body))
    try:
        return (yield from _collect(steps, cap_bytes=min(max_bytes, max(MIB, MAX_RATIO * len(body)))))
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise _failed(encoding, str(error)) from error


def _encoding_of(header: str | None) -> str:
    if not header:
        return "identity"
    named = [part.strip().lower() for part in header.split(",")]
    applied = [name for name in named if name not in ("", "identity")]
    if not applied:
        return "identity"
    if len(applied) > 1 or applied[0] not in _STEPS:
        raise ApiError("unsupported_encoding", f"Content-Encoding {header[:60]!r} is not taken.")
    return applied[0]


def _collect(steps: Iterator[bytes], *, cap_bytes: int) -> Steps[bytes]:
    pieces: list[bytes] = []
    total = 0
    for piece in steps:
        total += len(piece)
        if total > cap_bytes:
            raise _too_large(cap_bytes)
        pieces.append(piece)
        yield len(piece)
    return b"".join(pieces)


def _gzip(body: memoryview) -> Iterator[bytes]:
    position = 0
    for _ in range(MAX_MEMBERS):
        position = yield from _zlib_stream(body, position, "gzip", zlib.MAX_WBITS | 16)
        if position == len(body):
            return
    raise _failed("gzip", f"more than {MAX_MEMBERS} members")


def _deflate(body: memoryview) -> Iterator[bytes]:
    """RFC 9110 means the zlib format; some clients send the raw one, which has no such header."""
    has_zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    window_bits = zlib.MAX_WBITS if has_zlib_header else -zlib.MAX_WBITS
    end = yield from _zlib_stream(body, 0, "deflate", window_bits)
    if end != len(body):
        raise _failed("deflate", "there are bytes after its end")


def _zlib_stream(body: memoryview, position: int, name: str, window_bits: int) -> Generator[bytes, None, int]:
    """Yield one stream's plain bytes; the generator's value is the position after it."""
    stream = zlib.decompressobj(window_bits)
    while not stream.eof:
        chunk = body[position : position + _STEP_BYTES]
        if not chunk:
            raise _failed(name, "it is truncated")
        position += len(chunk)
        yield stream.decompress(chunk, _STEP_BYTES)
        while stream.unconsumed_tail and not stream.eof:
            yield stream.decompress(stream.unconsumed_tail, _STEP_BYTES)
    return position - len(stream.unused_data)


def _zstd(body: memoryview) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    position = 0
    for _ in range(MAX_MEMBERS):
        frame = decompressor.decompressobj()
        while not frame.eof:
            chunk = body[position : position + _ZSTD_INPUT_BYTES]
            if not chunk:
                raise _failed("zstd", "it is truncated")
            position += len(chunk)
            yield frame.decompress(chunk)
        position -= len(frame.unused_data)
        if position == len(body):
            return
    raise _failed("zstd", f"more than {MAX_MEMBERS} frames")


def _brotli(body: memoryview) -> Iterator[bytes]:
    stream = brotli.Decompressor()
    pending: bytes | memoryview = body
    while not stream.is_finished():
        piece = stream.process(pending, output_buffer_limit=_STEP_BYTES)
        pending = b""
        yield piece
        if not piece and stream.can_accept_more_data() and not stream.is_finished():
            raise _failed("br", "it is truncated")


_STEPS: dict[str, Callable[[memoryview], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
    "br": _brotli,
}


def _failed(encoding: str, reason: str) -> ApiError:
    return ApiError("inflate_failed", f"The body cannot be decompressed as {encoding}: {reason}.")


def _too_large(cap_bytes: int) -> ApiError:
    return ApiError("body_too_large", f"The body is larger than {cap_bytes} bytes when decompressed.")
