"""Work in steps: a turn ends where it is told to, and the next goes on from there."""

from gateway.steps import Steps, run_to_end, run_turn


def counting(steps: int) -> Steps[str]:
    for _ in range(steps):
        yield 10
    return "done"


def test_a_turn_stops_after_so_many_bytes() -> None:
    work = counting(5)
    assert run_turn(work, max_seconds=60, max_bytes=25) == (30, None)
    assert run_turn(work, max_seconds=60, max_bytes=25) == (20, "done")


def test_a_turn_stops_after_its_time_and_never_before_a_step() -> None:
    work = counting(2)
    assert run_turn(work, max_seconds=0, max_bytes=100) == (10, None)
    assert run_turn(work, max_seconds=0, max_bytes=100) == (10, None)
    assert run_turn(work, max_seconds=0, max_bytes=100) == (0, "done")


def test_without_turns() -> None:
    assert run_to_end(counting(3)) == "done"
