"""Ray's dashboard server, which looks every ten seconds whether the processes of its pages are well: by itself it asks
each of them over HTTP every second, 0.4 % of a core in all. `ray_start_hook` starts it.

A page's process that has ended is back that much later; a request for it fails until then.
"""

import asyncio
import runpy

INTERVAL_S = 10.0


def main() -> None:
    from ray.dashboard.subprocesses.handle import SubprocessModuleHandle

    look = SubprocessModuleHandle._do_once_health_check

    async def look_seldom(handle: SubprocessModuleHandle) -> None:
        # Beside the second that Ray waits between two looks.
        await asyncio.sleep(INTERVAL_S - 1.0)
        await look(handle)  # type: ignore[no-untyped-call]

    SubprocessModuleHandle._do_once_health_check = look_seldom  # type: ignore[method-assign]
    runpy.run_module("ray.dashboard.dashboard", run_name="__main__")


# The processes of the pages import this file too, under another name.
if __name__ == "__main__":
    main()
