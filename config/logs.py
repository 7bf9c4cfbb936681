"""Structured logs for every process: one JSON object a line on stderr.

Fields: `ts` (ISO 8601 UTC), `level`, `process`, `action` (stable, for machines), `message` (lower case, for
people), and whatever the call gave as `extra`. A line is pure ASCII, so that no CR, LF, ESC or bidi mark
of a client reaches a terminal; strings are cut; keys and passwords in URLs are replaced.

    log = logging.getLogger(__name__)
    log.warning("worker ended", extra={"action": "worker_ended", "exit_code": 1})
"""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

MAX_FIELD_CHARS = 512
MAX_TRACEBACK_CHARS = 8192

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "action", "color_message"}
_SECRET = re.compile(
    r"(?P<kind>aa_(?:write|read|import|admin)_)[\w-]{6,}"
    r"|(?<=://)(?P<user>[^\s/:@]*:)[^\s/@]+(?=@)"
    # Of a URL's query, sslpassword too. In JSON a quote ends it and an escaped one does not: the line stays JSON.
    r"|(?P<name>(?i:password)=)(?:\\.|[^\s&\"\\])+"
)


def configure(process: str, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Make this process log in JSON lines. `process` names it in every line, e.g. "gateway-0"."""
    handler = _LineHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


class _LineHandler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Without a word where the disk is full: the traceback would go there too, and shows what is redacted here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "action": getattr(record, "action", record.name),
            "message": _cut(record.getMessage(), MAX_FIELD_CHARS),
        }
        for name, value in vars(record).items():
            # Ray marks every record with a private field of its own.
            if name not in _OWN_FIELDS and not name.startswith("_"):
                line[name] = _plain(value)
        if record.exc_info:
            line["traceback"] = _cut(self.formatException(record.exc_info), MAX_TRACEBACK_CHARS)
        return redact(json.dumps(line))


def redact(text: str) -> str:
    """The text without key secrets and without passwords of URLs."""
    return _SECRET.sub(lambda m: f"{m[str(m.lastgroup)]}[redacted]", text)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(str(value), MAX_FIELD_CHARS)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[:max_chars] + "…"


class LogRate:
    """At most so many lines a second for each code, so that a storm of failures cannot fill a disk.

    Bounded by the number of codes, which come from the error table and never from a client.
    """

    def __init__(self, max_per_second: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_per_second = max_per_second
        self._clock = clock
        self._windows: dict[str, tuple[int, int]] = {}
        self._suppressed: dict[str, int] = {}

    def admit(self, code: str) -> int | None:
        """None: stay silent. Otherwise log, and say how many lines were suppressed since the last one."""
        second = int(self._clock())
        window, used = self._windows.get(code, (second, 0))
        used = used if window == second else 0
        if used >= self._max_per_second:
            self._suppressed[code] = self._suppressed.get(code, 0) + 1
            return None
        self._windows[code] = (second, used + 1)
        return self._suppressed.pop(code, 0)
