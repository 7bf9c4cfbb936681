"""Where destinations may be, and how they are opened.

The law:
- A bucket is Amazon's, or on a server that `destinations.endpoint_hosts` names; a folder is below
  `destinations.folder`, links followed. What a destination says is looked at again each time it is opened.
- It is never within the lake's own place, nor around it: the lake's keeper removes what it does not know.
- The backup of the settings is trusted as they are.
- Credentials are those of the named profile of the AWS configuration, or of the system itself.
"""

import asyncio
import re
import socket
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote

import msgspec
from yarl import URL

from analytics_actors.webhook_hosts import Refused, WebhookHosts
from config.settings import DestinationSettings, LakeSettings, Settings
from storage.destinations import Destination
from storage.errors import Misconfigured
from storage.object_store import ObjectStore, lake_url, open_object_store, s3_parts, split_url

RESOLVE_DEADLINE_S = 5.0

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,32}")
_PROFILE = re.compile(r"[A-Za-z0-9 ._@-]{0,100}")
_BACKUP = "backup-"


class Places:
    def __init__(self, settings: Settings) -> None:
        self._lake = settings.lake
        self._policy = settings.destinations
        self._data = Path(settings.data)
        self._hosts = WebhookHosts(self._policy.endpoint_hosts, setting="destinations.endpoint_hosts")

    async def open(self, destination: Destination) -> ObjectStore:
        """Raises `Misconfigured` for a place where no destination may be."""
        settings = _settings_of(destination, self._lake)
        try:
            await self._check(destination)
            return open_object_store(settings, data=self._data)
        except (Refused, ValueError) as error:
            raise Misconfigured(str(error)) from error

    async def _check(self, destination: Destination) -> None:
        url = split_url(destination.url, setting="url")
        if url.scheme == "file":
            self._check_folder(destination, Path(unquote(url.path)))
            return
        for pattern, value in (
            (_BUCKET, url.netloc),
            (_REGION, destination.region),
            (_PROFILE, destination.credentials),
        ):
            if pattern.fullmatch(value) is None:
                raise Refused(f"{value!r} is no name of a bucket, a region or a profile")
        if _overlaps(_s3_place(self._lake), s3_parts(destination.endpoint_url, url)):
            raise Refused("the lake itself is there: a destination has a bucket or a prefix of its own")
        if destination.endpoint_url and not _is_of_settings(destination):
            await self._check_server(destination.endpoint_url)

    def _check_folder(self, destination: Destination, folder: Path) -> None:
        folder = folder.resolve()
        root = self._policy.folder
        if not _is_of_settings(destination) and (not root or Path(root).resolve() not in folder.parents):
            raise Refused("a folder of a destination lies below destinations.folder, which names none that it is in")
        lake = split_url(lake_url(self._lake, data=self._data), setting="lake.url")
        if lake.scheme == "file" and _overlaps(Path(unquote(lake.path)).resolve().parts, folder.parts):
            raise Refused("the lake itself is there: a destination has a folder of its own")

    async def _check_server(self, endpoint_url: str) -> None:
        url = URL(endpoint_url)
        if url.user or url.password or url.query_string or url.fragment or url.path not in ("", "/"):
            raise Refused("an endpoint is http(s)://host:port and nothing more")
        self._hosts.check(url)
        host, port = url.raw_host or "", url.port
        try:
            async with asyncio.timeout(RESOLVE_DEADLINE_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Refused(f"{host} is no host that is known: {error}") from error
        for *_, where in found:
            self._hosts.check_address(host, port, ip_address(str(where[0]).partition("%")[0]))


def backup_of(policy: DestinationSettings) -> Destination | None:
    """The destination that the settings ask for. Another place is another destination."""
    if not policy.backup_url:
        return None
    place = f"{policy.backup_endpoint_url} {policy.backup_url}"
    return Destination(
        destination_id=_BACKUP + sha256(place.encode()).hexdigest()[:12],
        owner="all",
        owner_id="",
        kind="backup",
        url=policy.backup_url,
        endpoint_url=policy.backup_endpoint_url,
        region=policy.backup_region,
        path_style=policy.backup_path_style,
        credentials=policy.backup_profile,
    )


def is_backup_id(destination_id: str) -> bool:
    """Whether the settings have made it, these or earlier ones."""
    return destination_id.startswith(_BACKUP)


def _is_of_settings(destination: Destination) -> bool:
    return is_backup_id(destination.destination_id)


def _settings_of(destination: Destination, lake: LakeSettings) -> LakeSettings:
    return msgspec.structs.replace(
        lake,
        url=destination.url,
        endpoint_url=destination.endpoint_url,
        region=destination.region,
        path_style=destination.path_style,
        profile=destination.credentials,
        server_side_encryption="",
    )


def _s3_place(lake: LakeSettings) -> tuple[str, ...]:
    """Empty where the lake is in a folder."""
    if not lake.url.startswith("s3:"):
        return ()
    return s3_parts(lake.endpoint_url, split_url(lake.url, setting="lake.url"))


def _overlaps(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Whether one is the other, or within it."""
    shorter = min(len(ours), len(theirs))
    return shorter > 0 and ours[:shorter] == theirs[:shorter]
