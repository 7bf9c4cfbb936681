"""Bodies in every encoding: whole, damaged, and made to explode."""

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.inflate import MAX_MEMBERS, MAX_RATIO, MIB, inflate

PLAIN = b'{"eventType":"view","properties":{"text":"' + b"lorem ipsum " * 50 + b'"}}'


def raw_deflate(plain: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(plain) + stream.flush()


def zstd_with_window(plain: bytes, *, window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(plain) + stream.flush()


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.compress),
    "br": ("br", brotli.compress),
}
packers = pytest.mark.parametrize(("encoding", "pack"), PACKERS.values(), ids=PACKERS.keys())


def refusal(body: bytes, encoding: str | None, *, max_bytes: int = 10 * MIB) -> str:
    with pytest.raises(ApiError) as raised:
        inflate(body, encoding, max_bytes=max_bytes)
    return raised.value.code


@packers
@given(plain=st.binary(max_size=300_000) | st.sampled_from([b"", b"a" * 300_000, os.urandom(200_000)]))
def test_round_trip(encoding: str, pack: Callable[[bytes], bytes], plain: bytes) -> None:
    assert inflate(pack(plain), encoding, max_bytes=MIB) == plain


@packers
def test_the_cap_is_exact(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(PLAIN)
    assert inflate(packed, encoding, max_bytes=len(PLAIN)) == PLAIN
    assert refusal(packed, encoding, max_bytes=len(PLAIN) - 1) == "body_too_large"


@packers
def test_a_bomb_is_stopped_by_its_ratio(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b"a" * (64 * MIB))
    assert refusal(bomb, encoding, max_bytes=1024 * MIB) == "body_too_large"


@packers
def test_a_bomb_takes_no_more_memory_than_the_cap_and_a_step(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b"a" * (64 * MIB))
    tracemalloc.start()
    try:
        assert refusal(bomb, encoding, max_bytes=2 * MIB) == "body_too_large"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 14 * MIB


def test_less_than_a_mebibyte_may_have_any_ratio() -> None:
    packed = gzip.compress(b" " * MIB)
    assert MAX_RATIO * len(packed) < MIB
    assert len(inflate(packed, "gzip", max_bytes=10 * MIB)) == MIB


@packers
@pytest.mark.parametrize("kept", [0, 1, 5, 20, -1])
def test_truncated(encoding: str, pack: Callable[[bytes], bytes], kept: int) -> None:
    assert refusal(pack(PLAIN)[:kept], encoding) == "inflate_failed"


@packers
def test_trailing_garbage(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert refusal(pack(PLAIN) + b"garbage", encoding) == "inflate_failed"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
@given(body=st.binary(max_size=200))
def test_noise_inflates_or_is_refused(encoding: str, body: bytes) -> None:
    try:
        inflate(body, encoding, max_bytes=MIB)
    except ApiError as error:
        assert error.code == "inflate_failed"


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_several_members_are_one_body(pack: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if pack is gzip.compress else "zstd"
    assert inflate(pack(b"[1,") + pack(b"") + pack(b"2]"), encoding, max_bytes=100) == b"[1,2]"
    assert refusal(pack(b"") * (MAX_MEMBERS + 1), encoding) == "inflate_failed"


@pytest.mark.parametrize("header", [None, "", "identity", " Identity , "])
def test_identity(header: str | None) -> None:
    assert inflate(PLAIN, header, max_bytes=len(PLAIN)) == PLAIN
    assert refusal(PLAIN, header, max_bytes=len(PLAIN) - 1) == "body_too_large"
    assert inflate(gzip.compress(PLAIN), header, max_bytes=MIB) == PLAIN


@pytest.mark.parametrize("header", ["GZIP", " gzip ", "gzip, identity"])
def test_the_name_is_read_as_http_means_it(header: str) -> None:
    assert inflate(gzip.compress(PLAIN), header, max_bytes=MIB) == PLAIN


@pytest.mark.parametrize("header", ["compress", "gzip, gzip", "br, gzip", "utf-8", "*", "gzip;q=1"])
def test_unknown_and_nested_encodings(header: str) -> None:
    assert refusal(gzip.compress(PLAIN), header) == "unsupported_encoding"


def test_a_zstd_window_is_limited() -> None:
    assert inflate(zstd_with_window(PLAIN, window_log=23), "zstd", max_bytes=MIB) == PLAIN
    assert refusal(zstd_with_window(PLAIN, window_log=24), "zstd") == "inflate_failed"
