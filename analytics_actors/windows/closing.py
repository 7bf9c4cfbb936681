"""Which windows are to be closed when, and which closed ones were changed afterwards. No clock, no I/O."""

from collections.abc import Callable, Iterable

from storage.window_key import SIZE_S, Size, WindowKey

_ORDER: tuple[Size, ...] = ("1m", "5m", "1h")


class Closing:
    """A window closes `close_after_s` after its end. Everything is asked with the time of the asking, in seconds."""

    def __init__(self, *, close_after_s: float) -> None:
        self._close_after_s = close_after_s
        self._open: dict[tuple[int, Size], set[WindowKey]] = {}
        """By end and size."""
        self._changed: set[WindowKey] = set()

    @property
    def open_windows(self) -> int:
        return sum(map(len, self._open.values()))

    @property
    def changed_windows(self) -> int:
        return len(self._changed)

    def is_closed(self, key: WindowKey, now_s: float) -> bool:
        return key.start + SIZE_S[key.size] + self._close_after_s <= now_s

    def touched(self, keys: Iterable[WindowKey], now_s: float) -> None:
        """These were published with new values."""
        for key in keys:
            end = key.start + SIZE_S[key.size]
            group = self._open.get((end, key.size))
            if group is not None:
                # Also when its time has come and `due` was not asked yet.
                group.add(key)
            elif end + self._close_after_s > now_s:
                self._open[end, key.size] = {key}
            else:
                self._changed.add(key)

    def due(self, now_s: float) -> list[WindowKey]:
        """Windows that close now, by their end, small ones first. They are handed out once."""
        ends = sorted(
            (when for when in self._open if when[0] + self._close_after_s <= now_s),
            key=lambda when: (when[0], _ORDER.index(when[1])),
        )
        return [key for when in ends for key in sorted(self._open.pop(when))]

    def changed(self) -> list[WindowKey]:
        """Closed windows that were changed since the last call."""
        changed, self._changed = sorted(self._changed), set()
        return changed

    def take_changed(self, wanted: Callable[[WindowKey], bool]) -> list[WindowKey]:
        """As `changed`, of some windows only."""
        taken = [key for key in self._changed if wanted(key)]
        self._changed.difference_update(taken)
        return taken

    def drop(self, belongs: Callable[[str], bool]) -> None:
        for when in list(self._open):
            self._open[when] = {key for key in self._open[when] if not belongs(key.project_id)}
            if not self._open[when]:
                del self._open[when]
        self._changed = {key for key in self._changed if not belongs(key.project_id)}
