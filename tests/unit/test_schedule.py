"""When what is done once a day is due."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from analytics_actors.schedule import DailySchedule

AT_TWO = DailySchedule.read("02:00")
TWO = datetime(2026, 5, 2, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (TWO, TWO),
        (TWO - timedelta(microseconds=1), TWO - timedelta(days=1)),
        (TWO + timedelta(hours=23, minutes=59), TWO),
        (datetime(2026, 5, 2, 3, 30, tzinfo=timezone(timedelta(hours=2))), TWO - timedelta(days=1)),
    ],
)
def test_it_was_due_at_the_last_such_time(now: datetime, due: datetime) -> None:
    assert AT_TWO.last_due(now) == due
    assert AT_TWO.next_due(now) == due + timedelta(days=1)


def test_it_is_due_once_a_day_and_made_up_for_once() -> None:
    assert AT_TWO.is_due(TWO, last_run=None)
    assert AT_TWO.is_due(TWO, last_run=TWO - timedelta(seconds=1))
    assert not AT_TWO.is_due(TWO + timedelta(hours=23), last_run=TWO)
    assert AT_TWO.is_due(TWO + timedelta(days=3), last_run=TWO)


@pytest.mark.parametrize("text", ["24:00", "2", "02:60", "", "two"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be in|invalid literal"):
        DailySchedule.read(text)
