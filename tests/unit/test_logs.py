"""The log lines: machine readable, harmless to a terminal, without secrets, few in a storm."""

import errno
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from config import logs
from storage.key_text import make_key

log = logging.getLogger("tests.logs")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    logs.configure("gateway-0", stream=stream)
    yield stream
    root.handlers, root.level = handlers, level


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class FullDisk(io.StringIO):
    is_full = True

    def flush(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_takes_no_line_and_is_not_told_of_it(
    lines: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = FullDisk()
    logs.configure("gateway-0", stream=stream)
    log.warning("a lost one, of postgresql://user:secret@host/db")
    assert capsys.readouterr().err == ""
    stream.is_full = False
    log.warning("worker ended")
    assert parsed(stream)[-1]["message"] == "worker ended"


def test_line_has_its_fields(lines: io.StringIO) -> None:
    log.warning("worker %d ended", 3, extra={"action": "worker_ended", "exit_code": 1, "ok": None})
    [line] = parsed(lines)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "warning",
        "process": "gateway-0",
        "action": "worker_ended",
        "message": "worker 3 ended",
        "exit_code": 1,
        "ok": None,
    }


def test_control_characters_never_reach_the_terminal(lines: io.StringIO) -> None:
    log.info("a\r\nb\x1b[31m", extra={"action": "x", "user": "c\nd\x9b\u202e"})
    text = lines.getvalue()
    assert text.count("\n") == 1
    assert all(character == "\n" or " " <= character <= "~" for character in text)
    assert parsed(lines)[0]["user"] == "c\nd\x9b\u202e"


def test_long_strings_are_cut(lines: io.StringIO) -> None:
    log.info("x" * 10_000, extra={"action": "x", "field": "y" * 10_000})
    assert len(lines.getvalue()) < 2000


def test_secrets_are_replaced(lines: io.StringIO) -> None:
    key = make_key("admin")
    log.info("key %s", key, extra={"action": "x", "url": "postgresql://user:pass%20word@host/db", "other": [key]})
    text = lines.getvalue()
    assert key not in text
    assert "pass%20word" not in text
    assert "aa_admin_[redacted]" in text
    assert "postgresql://user:[redacted]@host/db" in text


@pytest.mark.parametrize("secret", ["s3cret", "a%26b", "it's", 'quo"te', "back\\slash", "end\\", "ümlaut", "a#b"])
@pytest.mark.parametrize("name", ["password", "sslpassword", "Password"])
def test_passwords_among_a_urls_parameters_are_replaced(lines: io.StringIO, name: str, secret: str) -> None:
    url = f"postgresql://host/db?user=u&{name}={secret}&sslmode=require"
    log.info("cannot reach %s", url, extra={"action": "x", "last": f"redis://host?{name}={secret}"})
    [line] = parsed(lines)
    assert line["message"] == f"cannot reach postgresql://host/db?user=u&{name}=[redacted]&sslmode=require"
    assert line["last"] == f"redis://host?{name}=[redacted]"


def test_exceptions_are_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("no\nsuch")
    except ValueError:
        log.exception("failed", extra={"action": "x"})
    [line] = parsed(lines)
    assert "ValueError: no\nsuch" in line["traceback"]


def test_rate_limits_each_code_for_itself_and_tells_what_was_left_out() -> None:
    now = [100.0]
    rate = logs.LogRate(2, clock=lambda: now[0])
    assert [rate.admit("a") for _ in range(5)] == [0, 0, None, None, None]
    assert rate.admit("b") == 0
    now[0] += 1
    assert [rate.admit("a") for _ in range(3)] == [3, 0, None]
