"""Logins by a reverse proxy, which names the user in a header."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from app.domain.errors import Unauthorized
from app.domain.external.authenticator import Credentials, is_usable_name

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")

_RESERVED = frozenset({"authorization", "connection", "content-length", "content-type", "cookie", "host", "origin"})
"""Headers that clients set for other purposes, so that a proxy would pass on their own."""


class ProxyLogin:
    """Implements `Authenticator`: trusts a header of requests that come from certain networks, and of no others.

    The network is that of the TCP connection. `X-Forwarded-For` plays no part.
    """

    def __init__(self, *, header: str, networks: Sequence[str]) -> None:
        """Create the adapter.

        Args:
            header: Name of the header.
            networks: Addresses and networks of the proxies.

        Raises:
            ValueError: The text begins with the setting that cannot be used.
        """
        self._header = header.lower()
        if not _HEADER.fullmatch(header) or self._header in _RESERVED:
            raise ValueError("AUTH_PROXY_HEADER: must be the name of a header that only the proxy sets")
        self._networks = [_network(text) for text in networks]

    async def authenticate(self, credentials: Credentials) -> str:
        """Implement `Authenticator.authenticate`."""
        if not self._is_proxy(credentials.peer):
            raise Unauthorized("only requests through the proxy with the login are served")
        found = credentials.values(self._header)
        if len(found) != 1:
            raise Unauthorized("the proxy must name the user in one header" if found else "the proxy named no user")
        try:
            name = found[0].decode()
        except UnicodeDecodeError:
            name = ""
        # A comma is what other proxies make of two headers.
        if not is_usable_name(name) or "," in name:
            raise Unauthorized("the proxy named a user that cannot exist")
        return name

    async def is_known(self, name: str) -> bool:
        """Implement `Authenticator.is_known`. Only the proxy knows its users."""
        return bool(name)

    async def check(self) -> str | None:
        """Implement `Authenticator.check`."""
        return None

    async def close(self) -> None:
        """Implement `Authenticator.close`."""

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError("AUTH_PROXY_FROM: must be a list of addresses and networks such as 10.0.0.0/24") from None
    if network.prefixlen == 0:
        raise ValueError("AUTH_PROXY_FROM: a network of all addresses would let everybody choose a name")
    return network
