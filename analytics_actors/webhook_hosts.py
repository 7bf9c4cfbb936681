"""Where webhooks and deliveries may go: the hosts of a setting, at addresses that may be theirs.

An entry is a host (`hooks.example.com`, `10.0.0.5`), one with a port (`localhost:9000`; without one any port will do),
or all hosts below a domain (`*.example.com`). A host named literally may have a private address: whoever runs the
server says so by naming it. Others are reached at public addresses only, and no name leads to a link-local one, where
clouds keep their credentials.
"""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

Address: TypeAlias = IPv4Address | IPv6Address

_NAT64 = IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """The URL may not be used; the message says why and what to change."""


class _Entry(NamedTuple):
    host: str
    port: int | None
    is_wildcard: bool

    def matches(self, host: str, port: int | None) -> bool:
        if self.port is not None and self.port != port:
            return False
        return host.endswith(f".{self.host}") if self.is_wildcard else host == self.host


class WebhookHosts:
    """`setting` is where the hosts were written."""

    def __init__(self, entries: Sequence[str], *, setting: str = "windows.webhook_hosts") -> None:
        self._entries = [_read(entry) for entry in entries]
        self._setting = setting

    def check(self, url: URL) -> None:
        """Raises `Refused` unless the URL's host is allowed; its addresses are checked when it is resolved."""
        host = (url.raw_host or "").rstrip(".").lower()
        if url.scheme not in ("http", "https") or not host:
            raise Refused("the URL is none of http or https")
        if not any(entry.matches(host, url.port) for entry in self._entries):
            raise Refused(f"{host} is not among {self._setting}")
        address = _as_address(host)
        if address is not None and not is_public(address) and not self._is_named(host, url.port):
            raise Refused(f"{host} is not public, and {self._setting} does not name it")

    def check_address(self, host: str, port: int | None, address: Address) -> None:
        """Raises `Refused` unless a connection may be made to the address that the name has."""
        if is_public(address):
            return
        host = host.rstrip(".").lower()
        if not self._is_named(host, port) or any(_is_never_named(part) for part in _embedded(address)):
            raise Refused(f"{host} has the address {address}, which is not public")

    def _is_named(self, host: str, port: int | None) -> bool:
        return any(entry.matches(host, port) and not entry.is_wildcard for entry in self._entries)


def is_public(address: Address) -> bool:
    return all(part.is_global and not part.is_multicast for part in _embedded(address))


def _is_never_named(address: Address) -> bool:
    return address.is_link_local or address.is_multicast or address.is_unspecified


def _embedded(address: Address) -> list[Address]:
    """The address, and the IPv4 address that it leads to."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [address, IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address] if address.sixtofour is None else [address, address.sixtofour]


class CheckedResolver(AbstractResolver):
    """Resolves for a connection that is made to the very addresses checked here, so that a name cannot have another one
    in between. (aiohttp does not ask it for addresses: `WebhookHosts.check` knows those.)"""

    def __init__(self, hosts: WebhookHosts) -> None:
        self._hosts = hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results = []
        for kind, _, proto, _, where in found:
            address = ip_address(str(where[0]).partition("%")[0])
            self._hosts.check_address(host, port, address)
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address),
                    port=port,
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """There is nothing to close."""


def _read(entry: str) -> _Entry:
    """IPv6 addresses with a port are written in brackets."""
    text = entry.strip().lower()
    is_wildcard = text.startswith("*.")
    text = text.removeprefix("*.")
    if _as_address(text.strip("[]")) is not None:
        return _Entry(text.strip("[]"), None, is_wildcard=False)
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit():
        return _Entry(host.strip("[]").rstrip("."), int(port), is_wildcard)
    return _Entry(text.rstrip("."), None, is_wildcard)


def _as_address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
