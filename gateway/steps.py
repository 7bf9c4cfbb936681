"""Work in steps, so that whoever runs it can stop in between and go on elsewhere."""

import time
from collections.abc import Generator
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")

Steps = Generator[int, None, Result]
"""Yields after each step how many bytes more the work holds; its value is the result."""


class Turn(NamedTuple, Generic[Result]):
    """What came of running steps for a while."""

    added_bytes: int
    result: Result | None
    """None when there is more to do."""


def run_turn(steps: Steps[Result], *, max_seconds: float, max_bytes: int) -> Turn[Result]:
    """Stops after the first step that passes one of the bounds."""
    until = time.monotonic() + max_seconds
    added = 0
    try:
        while added <= max_bytes:
            added += next(steps)
            if time.monotonic() >= until:
                break
    except StopIteration as end:
        return Turn(added, end.value)
    return Turn(added, None)


def run_to_end(steps: Steps[Result]) -> Result:
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: Result = end.value
        return result
