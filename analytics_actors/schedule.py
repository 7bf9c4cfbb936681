"""When what is done once a day is due. Pure: whoever asks brings the time."""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta


@dataclass(frozen=True)
class DailySchedule:
    """Each day at one time, UTC."""

    at: time

    @classmethod
    def read(cls, text: str) -> "DailySchedule":
        """`HH:MM`. Raises `ValueError`."""
        hour, _, minute = text.partition(":")
        return cls(time(int(hour), int(minute)))

    def last_due(self, now: datetime) -> datetime:
        """The latest time at or before `now`."""
        today = datetime.combine(now.astimezone(UTC).date(), self.at, UTC)
        return today if today <= now else today - timedelta(days=1)

    def next_due(self, now: datetime) -> datetime:
        return self.last_due(now) + timedelta(days=1)

    def is_due(self, now: datetime, *, last_run: datetime | None) -> bool:
        """Whether nothing has run since it was last due; what was missed is made up for once."""
        return last_run is None or last_run < self.last_due(now)
