"""One project's questions leave the others a place and a turn."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.project_turns import ProjectTurns


class Asked:
    """Questions that end when they are told to, in the order in which they got their places."""

    def __init__(self, turns: ProjectTurns) -> None:
        self._turns = turns
        self._ends: dict[str, asyncio.Event] = {}
        self.running: list[str] = []
        self.refused: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """The first letter is the project."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._ask(name))
            await asyncio.sleep(0)
        await settle()

    async def _ask(self, name: str) -> None:
        end = self._ends[name] = asyncio.Event()
        try:
            async with self._turns.place(name[0]):
                with self._noted(name):
                    await end.wait()
        except ApiError as error:
            assert (error.code, error.retry_after_s) == ("overloaded", 1)
            self.refused.append(name)

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        self.running.append(name)
        try:
            yield
        finally:
            self.running.remove(name)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_last_place_is_another_projects() -> None:
    asked = Asked(ProjectTurns(3, max_waiting=8, longest_wait_s=60))
    await asked.ask("a1", "a2", "a3", "a4")
    assert asked.running == ["a1", "a2"]
    await asked.ask("b1")
    assert asked.running == ["a1", "a2", "b1"]
    await asked.end("b1")
    assert asked.running == ["a1", "a2"]
    await asked.end("a1")
    assert asked.running == ["a2", "a3"]


async def test_a_single_place_is_everybodys() -> None:
    asked = Asked(ProjectTurns(1, max_waiting=8, longest_wait_s=60))
    await asked.ask("a1", "b1")
    assert asked.running == ["a1"]


async def test_projects_that_wait_take_turns() -> None:
    asked = Asked(ProjectTurns(1, max_waiting=8, longest_wait_s=60))
    await asked.ask("a1", "a2", "a3", "b1", "b2", "c1")
    served = []
    while asked.running:
        served += asked.running
        await asked.end(served[-1])
    assert served == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_when_too_many_wait_the_longest_line_gives() -> None:
    asked = Asked(ProjectTurns(1, max_waiting=3, longest_wait_s=60))
    await asked.ask("a0", "a1", "a2", "a3", "b1")
    assert asked.refused == ["a3"]
    for name in ("b2", "c1", "d1"):
        await asked.ask(name)
    assert asked.refused == ["a3", "b2", "a2", "d1"]
    await asked.end("a0")
    await asked.end("a1")
    assert asked.running == ["b1"]


async def test_who_waits_too_long_or_goes_away_leaves_the_line() -> None:
    asked = Asked(ProjectTurns(1, max_waiting=8, longest_wait_s=0.02))
    await asked.ask("a1", "a2", "b1")
    asked.tasks["b1"].cancel()
    await asyncio.sleep(0.05)
    assert asked.refused == ["a2"]
    await asked.end("a1")
    await asked.ask("c1")
    assert asked.running == ["c1"]


async def test_a_place_that_was_given_to_who_goes_away_is_handed_on() -> None:
    asked = Asked(ProjectTurns(1, max_waiting=8, longest_wait_s=60))
    await asked.ask("a1", "b1", "c1")
    asked._ends["a1"].set()
    while not asked.tasks["a1"].done():
        await asyncio.sleep(0)
    asked.tasks["b1"].cancel()
    await settle()
    assert asked.running == ["c1"]


_STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=40)


@given(st.integers(1, 4), st.integers(0, 3), _STEPS)
def test_no_place_is_lost_and_none_is_idle(places: int, queue: int, steps: list[tuple[str, int]]) -> None:
    """Whatever comes, ends and goes away: whom a free place could be given to does not wait."""

    async def run() -> None:
        turns = ProjectTurns(places, max_waiting=queue, longest_wait_s=60)
        asked = Asked(turns)
        for number, (project, choice) in enumerate(steps):
            if choice < 6:
                await asked.ask(f"{project}{number}")
            elif choice < 8 and asked.running:
                await asked.end(asked.running[number % len(asked.running)])
            else:
                for task in list(asked.tasks.values())[-choice:]:
                    task.cancel()
                await settle()
            held = [name[0] for name in asked.running]
            assert len(held) <= places and turns._running.total() == len(held)
            assert all(held.count(each) <= max(1, places - 1) for each in held)
            assert sum(map(len, turns._lines.values())) <= queue and all(turns._lines.values())
            if len(held) < places:
                assert all(held.count(each) == places - 1 for each in turns._lines)
        for task in asked.tasks.values():
            task.cancel()
        await asyncio.gather(*asked.tasks.values(), return_exceptions=True)
        assert not turns._running and not turns._lines

    asyncio.run(run())


@pytest.mark.parametrize("places", [1, 3])
async def test_without_a_line_nothing_waits(places: int) -> None:
    asked = Asked(ProjectTurns(places))
    await asked.ask("a1", "a2", "a3")
    assert asked.refused == ["a2", "a3"][max(0, places - 2) :]
