"""Running totals of one batcher, and what it waits for. Updated per record and per write, never per event."""

import logging
from collections import defaultdict

from analytics_actors.pending import PendingRecord
from storage.event_store import WriteResult

_log = logging.getLogger(__name__)


class Counters:
    """Read from other threads too: values are replaced, never half updated."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self._trouble: dict[str, str] = {}

    def appended(self, pending: PendingRecord, *, batches: int) -> None:
        self.totals["records_appended"] += 1
        self.totals["batches_appended"] += batches
        self.totals["bytes_appended"] += pending.log_bytes
        self.totals["events_appended"] += pending.events
        self.totals["events_duplicate"] += sum(count.duplicate for count in pending.counts)

    def written(self, result: WriteResult, *, seconds: float) -> None:
        self.totals["writes"] += 1
        self.totals["write_seconds"] += seconds
        self.totals["events_stored"] += result.stored
        self.totals["events_dead_lettered"] += result.dead_lettered
        self.totals["events_aggregated"] += result.aggregated
        self.totals["events_overflowed"] += result.overflow

    def count(self, name: str, amount: float = 1) -> None:
        self.totals[name] += amount

    def trouble(self, service: str, message: str) -> None:
        """`service` does not answer; shown until `clear_trouble`, and logged when it begins and ends."""
        if service not in self._trouble:
            _log.warning("trouble", extra={"action": "trouble", "service": service, "error": message})
        self._trouble[service] = message

    def clear_trouble(self, service: str) -> None:
        if self._trouble.pop(service, None) is not None:
            _log.info("the trouble is over", extra={"action": "trouble_over", "service": service})

    @property
    def in_trouble(self) -> frozenset[str]:
        return frozenset(self._trouble)

    @property
    def troubles(self) -> str:
        return "; ".join(f"{service}: {message}" for service, message in sorted(self._trouble.items()))
