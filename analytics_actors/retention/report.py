"""What a run of the retention has done, or would do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from storage.retention import Kind, Removal


class Totals(NamedTuple):
    kind: Kind
    names: int
    files: int
    rows: int
    bytes: int


@dataclass
class Report:
    started_at: datetime
    dry_run: bool
    removals: list[Removal] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """What was due and stayed, and why."""
    busy: bool = False
    """Something stayed only because it was in use: to be tried again soon."""

    def totals(self) -> Sequence[Totals]:
        """By kind, in the order in which they came."""
        names: dict[Kind, set[str]] = {}
        sums: Counter[tuple[Kind, str]] = Counter()
        for each in self.removals:
            names.setdefault(each.kind, set()).add(each.name)
            sums.update({(each.kind, "files"): each.files, (each.kind, "rows"): each.rows})
            sums[each.kind, "bytes"] += each.bytes
        return [
            Totals(kind, len(of_kind), *(sums[kind, what] for what in ("files", "rows", "bytes")))
            for kind, of_kind in names.items()
        ]
