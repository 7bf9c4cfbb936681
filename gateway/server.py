"""One worker's HTTP server: uvicorn on an inherited socket, with our protocol and our way to end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
from starlette.types import ASGIApp

from config.settings import GatewaySettings
from gateway.protocol import KEEP_ALIVE_S, Begin, Connection, ConnectionConfig
from gateway.supervisor import SUPERVISOR_PID

TENTHS_A_TICK = 5
"""Of a second. uvicorn itself ticks at each tenth, which is most of what an idle worker would do."""


async def serve(
    app: ASGIApp,
    sock: socket.socket,
    settings: GatewaySettings,
    *,
    begin: Begin | None = None,
    on_shutdown: Callable[[], None],
) -> None:
    """Serve until SIGTERM, SIGINT or the supervisor's death; return when the requests in flight are answered.

    `begin` is tried for a complete request before `app` is called. `on_shutdown` is called once when the stop was
    asked for, before the wait of at most `drain_deadline_s`.
    Call it under uvloop (`uvloop.run(main())`) and in the main thread. Services that outlive the requests
    are closed by the caller afterwards.
    """
    # uvicorn warns once for every malformed request: those are counted, and logged with a rate limit.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = ConnectionConfig(
        app,
        http=Connection,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(KEEP_ALIVE_S),
        timeout_graceful_shutdown=max(1, round(settings.drain_deadline_s)),
    )
    config.limits = settings
    config.begin = begin
    await _Server(config, on_shutdown).serve(sockets=[sock])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_shutdown = on_shutdown
        self._stopping = asyncio.Event()
        self._supervisor_pid = int(os.environ.get(SUPERVISOR_PID, os.getppid()))

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Unlike uvicorn's own, does not raise the signal again at the end: the caller has services to close."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        if not self.should_exit:
            self.should_exit = True
            self._stopping.set()
            self._on_shutdown()

    async def main_loop(self) -> None:
        """As uvicorn's, which counts its ticks in tenths of a second, but with fewer of them, and ended at once."""
        tenths = 0
        while not await self.on_tick(tenths):
            tenths += TENTHS_A_TICK
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TENTHS_A_TICK / 10):
                    await self._stopping.wait()

    async def on_tick(self, counter: int) -> bool:
        if os.getppid() != self._supervisor_pid:
            self.stop()
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.check_deadlines(now)
        return await super().on_tick(counter)
