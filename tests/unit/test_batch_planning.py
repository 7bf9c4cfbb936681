"""Which days a batch job counts again, and in which pieces."""

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from analytics_actors.batch.planning import (
    DAYS_PER_PIECE,
    FROZEN_FOR_S,
    PROJECT_DAYS_PER_PIECE,
    plan,
    without_metric,
)
from storage.batch_jobs import DueDay, PlannedPiece
from storage.rollups import DAY_S, day_start

FIRST = date(2026, 1, 1)
LATE = day_start(date(2027, 1, 1))


def due(*each: tuple[str, int]) -> list[DueDay]:
    return [DueDay(project, FIRST + timedelta(days=number), "") for project, number in each]


def test_days_with_the_same_projects_go_together() -> None:
    days = due(("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 4), ("b", 5))
    planned = plan(days, frozen_below=LATE)
    day = [FIRST + timedelta(days=number) for number in range(6)]
    assert planned.pieces == [
        PlannedPiece(day[0], day[1], ("a", "b")),
        PlannedPiece(day[2], day[2], ("a",)),
        PlannedPiece(day[4], day[5], ("b",)),
    ]
    assert planned.days_open == 0


def test_days_that_may_change_are_left_out() -> None:
    end = day_start(FIRST) + 2 * DAY_S
    over = end + FROZEN_FOR_S
    assert plan(due(("a", 0), ("a", 1)), frozen_below=over).days_open == 0
    planned = plan(due(("a", 0), ("a", 1), ("a", 9)), frozen_below=over - 3600)
    assert planned.days_open == 2
    assert planned.pieces == [PlannedPiece(FIRST, FIRST, ("a",))]


@given(st.sets(st.tuples(st.sampled_from([f"p{n}" for n in range(1500)]), st.integers(0, 90)), max_size=300))
def test_every_day_is_in_one_piece_of_bounded_size(days: set[tuple[str, int]]) -> None:
    planned = plan(due(*days), frozen_below=LATE)
    covered = [
        (project, (piece.first_day - FIRST).days + number)
        for piece in planned.pieces
        for number in range((piece.last_day - piece.first_day).days + 1)
        for project in piece.projects
    ]
    assert sorted(covered) == sorted(days)
    for piece in planned.pieces:
        assert piece.days <= PROJECT_DAYS_PER_PIECE
        assert (piece.last_day - piece.first_day).days < DAYS_PER_PIECE


def test_a_day_of_many_projects_is_several_pieces() -> None:
    planned = plan(due(*((f"p{n:05}", 0) for n in range(2500))), frozen_below=LATE)
    assert [piece.days for piece in planned.pieces] == [1000, 1000, 500]


def test_days_that_were_counted_with_the_metric_are_left_out() -> None:
    days = [
        DueDay("a", FIRST, ""),
        DueDay("a", FIRST + timedelta(1), "x;m=7"),
        DueDay("a", FIRST + timedelta(2), "x;m=6"),
        DueDay("a", FIRST + timedelta(3), "x;n=7"),
        DueDay("b", FIRST, "x;m=7"),
    ]
    found = without_metric(days, "m", {"a": 7, "b": 0}.__getitem__)
    assert found == [days[0], days[2], days[3], days[4]], "of a built-in metric every day is taken"
