"""The loop of the aggregator's parts, and of deliveries: a step, a pause, and longer pauses while a service is away."""

import asyncio
from collections.abc import Awaitable, Callable

from analytics_actors.counters import Counters
from storage.errors import StorageError

MAX_PAUSE_S = 5.0


async def step_forever(
    step: Callable[[], Awaitable[None]],
    counters: Counters,
    name: str,
    *,
    pause_s: float,
    max_pause_s: float = MAX_PAUSE_S,
) -> None:
    """Runs until cancelled. What the services raise is the part's trouble, and doubles its pause up to `max_pause_s`;
    anything else ends it."""
    next_pause_s = pause_s
    while True:
        try:
            await step()
        except StorageError as error:
            counters.trouble(name, str(error))
            next_pause_s = min(2 * next_pause_s, max_pause_s)
        else:
            counters.clear_trouble(name)
            next_pause_s = pause_s
        await asyncio.sleep(next_pause_s)
