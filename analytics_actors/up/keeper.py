"""Restarts a service whenever its process has ended, until a stop is asked for."""

import logging
import threading
import time
from collections.abc import Callable

from analytics_actors.up.children import ChildFailed
from analytics_actors.up.services import Service
from storage.errors import StorageError

MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 10.0
"""A service that lived this long is restarted without a grudge."""

_log = logging.getLogger(__name__)


def backoff_s(failures: int) -> float:
    """Seconds before the next start: doubling with each early death or failed start in a row, and bounded."""
    return min(MIN_BACKOFF_S * 2.0 ** min(failures, 16), MAX_BACKOFF_S)


class Keeper:
    """One thread a service. `run` returns when `stopping` is set and the service's process has ended."""

    def __init__(
        self, service: Service, stopping: threading.Event, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._service = service
        self._stopping = stopping
        self._clock_s = clock_s
        self._failures = 0
        self.restarts = 0

    def run(self) -> None:
        while True:
            started_s = self._clock_s()
            exit_code = self._service.wait()
            if self._stopping.is_set():
                return
            if self._clock_s() - started_s > HEALTHY_AFTER_S:
                self._failures = 0
            fields = {"action": "service_ended", "service": self._service.name, "exit_code": exit_code}
            _log.warning("%s ended; it is started again", self._service.name, extra=fields)
            if not self._start_again():
                return

    def _start_again(self) -> bool:
        """Try until it runs; False when a stop was asked for meanwhile."""
        while not self._stopping.wait(backoff_s(self._failures)):
            self._failures += 1
            try:
                self._service.start()
            except (StorageError, ChildFailed, OSError) as error:
                fields = {"action": "restart_failed", "service": self._service.name, "error": str(error)}
                _log.error("%s did not start", self._service.name, extra=fields)
            else:
                self.restarts += 1
                _log.info("%s runs again", self._service.name, extra={"action": "service_restarted"})
                return True
        return False
