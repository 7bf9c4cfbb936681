"""How long a slow server's answers are held back."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from load_tests.slow_proxy import BYTES_PER_S, LATENCY_S, Pace, Slowness
from tests.unit import virtual_time

SECOND = int(BYTES_PER_S)
"""Bytes that take one."""

Talk = Callable[[Pace, Slowness], Awaitable[None]]


def seconds(talk: Talk, *, factor: float) -> float:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        slowness = Slowness()
        slowness.factor = factor
        started_s = loop.time()
        await talk(Pace(slowness), slowness)
        return loop.time() - started_s

    return virtual_time.run(main())


async def one_answer(pace: Pace, _: Slowness) -> None:
    await pace.asked(SECOND)
    await pace.asked(SECOND)
    await pace.answered(0)


@pytest.mark.parametrize("factor", [1, 10])
def test_a_question_takes_as_long_as_its_bytes_and_its_answer_comes_later(factor: float) -> None:
    assert seconds(one_answer, factor=factor) == pytest.approx(factor * (2 + LATENCY_S))


def test_the_rest_of_an_answer_comes_as_fast_as_its_bytes() -> None:
    async def in_pieces(pace: Pace, slowness: Slowness) -> None:
        await one_answer(pace, slowness)
        await pace.answered(SECOND)

    assert seconds(in_pieces, factor=10) == pytest.approx(10 * (3 + LATENCY_S))


def test_a_further_question_has_an_answer_of_its_own_and_the_factor_of_then() -> None:
    """As `100 Continue` and the body after it."""

    async def two(pace: Pace, slowness: Slowness) -> None:
        await one_answer(pace, slowness)
        slowness.factor = 1
        await one_answer(pace, slowness)

    assert seconds(two, factor=10) == pytest.approx(11 * (2 + LATENCY_S))
