"""What `ray start` has no option for, set through the hook that it offers (`RAY_START_HOOK`).

Without it a head that nobody looks at runs ten more processes: the Ray Client server, and a process for
each dashboard page, of which we use four. Together they are 310 MB (PSS) and a good percent of a core.
"""

from typing import Any

from ray._private import ray_constants, services

DASHBOARD_MODULES = ("JobHead", "NodeHead", "ReportHead", "StateHead")
"""Jobs; nodes and actors; stacks and profiles of workers; `ray list` and logs. Not: Data, Serve, Train, Grafana."""


def trim(parameters: Any, is_head: bool) -> None:
    """Called by `ray start` with its `RayParams` before any process is started."""
    parameters.ray_client_server_port = None
    start_ray_process = services.start_ray_process

    def start_trimmed(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        serves_pages = "--modules-to-load" not in " ".join(command)
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD and serves_pages:
            command = [*command, f"--modules-to-load={','.join(DASHBOARD_MODULES)}"]
        return start_ray_process(command, process_type, *args, **options)

    services.start_ray_process = start_trimmed
