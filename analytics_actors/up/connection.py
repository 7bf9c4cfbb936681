"""`connection.json`: how to reach a running system, for scripts, tests and the other commands (mode 0600)."""

from pathlib import Path

import msgspec

from storage.embedded.process import write_private


class Prepared(msgspec.Struct, frozen=True):
    """What `analytics_actors.up.prepare` tells `up`: the database is ready, and these keys open the system."""

    project_id: str
    write_key: str
    read_key: str
    admin_key: str
    migrations: list[str]
    is_new: bool
    warnings: list[str]


class Connection(msgspec.Struct, frozen=True):
    """Written when the system is ready. It stays after `down`, because it keeps the keys."""

    gateway_url: str
    dashboard_url: str
    project_id: str
    admin_key: str
    write_key: str
    read_key: str
    postgres_url: str
    redis_url: str
    lake_url: str
    """Empty when the lake is not enabled."""
    ray_address: str
    ray_token_path: str
    pid: int

    def save(self, path: Path) -> None:
        write_private(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> "Connection | None":
        """None when there is none. Raises `ValueError` when the file is not ours."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None


def summary(connection: Connection) -> str:
    """What `up` prints when the system is ready."""
    c = connection
    dashboard = (
        f"{c.dashboard_url}    (token: cat {c.ray_token_path})" if c.dashboard_url else "that of the Ray cluster"
    )
    return f"""
gateway     {c.gateway_url}    (contract: {c.gateway_url}/docs)
dashboard   {dashboard}
write key   {c.write_key}    (project {c.project_id})
read key    {c.read_key}

send an event:
  curl -sS {c.gateway_url}/v1/events -H 'Authorization: Bearer {c.write_key}' \\
    -H 'Content-Type: application/json' -d '{{"eventType":"signup","userId":"u-1","properties":{{"plan":"pro"}}}}'
see it:
  curl -sS {c.gateway_url}/v1/events -H 'Authorization: Bearer {c.read_key}'
"""
