"""Tasks that run beside the calls: kept from being collected, and their failures kept from being overlooked."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

_log = logging.getLogger(__name__)


def end_if_failed(failure: BaseException | None, what: str) -> None:
    """End this process, an actor's, when its work has failed.

    Ray starts the actor anew if it is the one that Ray knows; everything is found again in the stores."""
    if failure is not None:
        _log.error("%s starts anew", what, exc_info=failure, extra={"action": "restart"})
        os._exit(1)


class Background:
    """Owns tasks until they end. One that fails is remembered: whoever watches the owner restarts it."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, run: Coroutine[Any, Any, None], *, on_end: Callable[[], None] | None = None) -> None:
        task = asyncio.get_running_loop().create_task(run)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, on_end))

    def _ended(self, task: "asyncio.Task[None]", on_end: Callable[[], None] | None) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failure = failure
            _log.error("a background task has failed", exc_info=failure, extra={"action": "task_failed"})
        if on_end is not None:
            on_end()

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
