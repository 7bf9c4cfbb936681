"""When what is done once a day is due. Pure: whoever asks brings the time."""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class DailySchedule:
    """Each day at one time, UTC."""

    at: time

    @classmethod
    def read(cls, text: str) -> "DailySchedule":
        """`HH:MM`. Raises `ValueError`."""
        return cls(datetime.strptime(text, "%H:%M").time())

    def last_due(self, now: datetime) -> datetime:
        """The latest time at or before `now`."""
        today = datetime.combine(now.astimezone(UTC).date(), self.at, UTC)
        return today if today <= now else today - _DAY

    def next_due(self, now: datetime) -> datetime:
        return self.last_due(now) + _DAY
