"""What `ray start` has no option for, set through the hook that it offers (`RAY_START_HOOK`).

Without it a head that nobody looks at runs ten more processes: the Ray Client server, and a process for
each dashboard page, of which we use four. Together they are 310 MB (PSS) and a good percent of a core.
The server of what is left asks its processes too often (`ray_dashboard`).
Without a dashboard it would still run the dashboard's server, for statistics of use that are off, and each start
would wait two seconds for it.
"""

from typing import Any

from ray._private import ray_constants, services

from analytics_actors import ray_dashboard

DASHBOARD_PROGRAM = "dashboard/dashboard.py"
DASHBOARD_MODULES = ("JobHead", "NodeHead", "ReportHead", "StateHead")
"""Jobs; nodes and actors; stacks and profiles of workers; `ray list` and logs. Not: Data, Serve, Train, Grafana."""


def trim(parameters: Any, is_head: bool) -> None:
    """Called by `ray start` with its `RayParams` before any process is started."""
    parameters.ray_client_server_port = None
    if not parameters.include_dashboard:
        services.start_api_server = _start_no_server
    start_ray_process = services.start_ray_process

    def start_trimmed(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        serves_pages = "--modules-to-load" not in " ".join(command)
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD and serves_pages:
            command = [ray_dashboard.__file__ if part.endswith(DASHBOARD_PROGRAM) else part for part in command]
            command.append(f"--modules-to-load={','.join(DASHBOARD_MODULES)}")
        return start_ray_process(command, process_type, *args, **options)

    services.start_ray_process = start_trimmed


def _start_no_server(*_: Any, **__: Any) -> tuple[str, None]:
    """No URL, as ever without a dashboard, and no process."""
    return "", None
