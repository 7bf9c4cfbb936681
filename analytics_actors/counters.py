"""Running totals of one batcher, and what it waits for. Updated per record and per write, never per event."""

from collections import defaultdict

from analytics_actors.pending import PendingRecord
from storage.event_store import WriteResult


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
        """`service` does not answer; shown until `clear_trouble`."""
        self._trouble[service] = message

    def clear_trouble(self, service: str) -> None:
        self._trouble.pop(service, None)

    @property
    def in_trouble(self) -> frozenset[str]:
        return frozenset(self._trouble)

    @property
    def troubles(self) -> str:
        return "; ".join(f"{service}: {message}" for service, message in sorted(self._trouble.items()))
