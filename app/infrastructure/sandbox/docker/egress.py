"""Where sandboxes may go: `SANDBOX_EGRESS`, and the addresses of the hosts that it names."""

import asyncio
import logging
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, NetmaskValueError
from typing import Literal

log = logging.getLogger(__name__)

PRIVATE = tuple(
    IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15")
)
"""Other people's machines behind the same door: closed, unless `SANDBOX_EGRESS` names an address of theirs."""

NEVER = tuple(
    IPv4Network(each) for each in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)
"""The machine itself, its neighbours on the wire (cloud metadata among them), and no single machine: always closed."""

RESOLVE_SECONDS = 5.0
MOST_ADDRESSES = 512
"""Of one list: a name whose addresses change all the time must not fill the packet filter."""

_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*")

_NUMBER = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)\.?(/.*)?")
"""What ends in a number means an address, also where it is written as 0x7f.1 or 2130706433, which nobody should."""


@dataclass(frozen=True, slots=True)
class EgressList:
    """Only these: host names in lower case, and networks (an address is one of length 32)."""

    hosts: tuple[str, ...]
    networks: tuple[IPv4Network, ...]

    def __str__(self) -> str:
        """One line, the same for lists that mean the same."""
        return ",".join([*self.hosts, *(str(each).removesuffix("/32") for each in self.networks)])


Egress = Literal["open", "none"] | EgressList


def parse_egress(text: str) -> Egress:
    """`open`, `none`, or host names, IPv4 addresses and networks (`192.0.2.0/24`) between commas or spaces.

    Raises:
        ValueError: an entry cannot be used; says which and why.
    """
    entries = text.replace(",", " ").lower().split()
    if entries in (["open"], ["none"]):
        return "open" if entries == ["open"] else "none"
    if not entries:
        raise ValueError("must be open, none, or a list of hosts")
    hosts: set[str] = set()
    networks: set[IPv4Network] = set()
    for entry in entries:
        network = _network(entry)
        if network is not None:
            networks.add(network)
        else:
            hosts.add(_host(entry))
    return EgressList(tuple(sorted(hosts)), tuple(sorted(networks)))


def _network(entry: str) -> IPv4Network | None:
    """None when the entry means to be a name."""
    if ":" in entry and "/" not in entry and _is_ipv6(entry):
        raise ValueError(f"{entry}: sandboxes have no IPv6")
    if not _NUMBER.fullmatch(entry):
        return None
    try:
        network = IPv4Network(entry)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise ValueError(f"{entry}: must be an address such as 192.0.2.7, or a network such as 192.0.2.0/24") from None
    for closed in NEVER:
        if network.subnet_of(closed):
            raise ValueError(f"{entry}: addresses of {closed} are closed to every sandbox")
    return network


def _is_ipv6(entry: str) -> bool:
    try:
        IPv6Address(entry)
    except AddressValueError:
        return False
    return True


def _host(entry: str) -> str:
    if "*" in entry:
        raise ValueError(f"{entry}: the network knows addresses, not names: list every host by its full name")
    if "/" in entry or ":" in entry:
        raise ValueError(f"{entry}: must be a host without scheme, port and path; all of its ports are open")
    if entry in ("open", "none"):
        raise ValueError(f"{entry}: stands alone, or is left out")
    if not _HOST.fullmatch(entry.removesuffix(".")) or entry == "localhost":
        raise ValueError(f"{entry}: not the name of a host")
    return entry.removesuffix(".")


class Addresses:
    """The addresses of the hosts of a list. Ever more of them: a sandbox may still hold one that it was told before."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._found: dict[str, list[IPv4Address]] = {host: [] for host in hosts}

    @property
    def all(self) -> tuple[IPv4Address, ...]:
        """Every address that was found so far."""
        return tuple(sorted({address for found in self._found.values() for address in found})[:MOST_ADDRESSES])

    @property
    def pins(self) -> tuple[tuple[str, str], ...]:
        """Each name with its addresses, the newest first."""
        return tuple((host, str(address)) for host, found in self._found.items() for address in found[:4])

    async def resolve(self) -> bool:
        """Look all names up once more; answers whether there is a new address. A name that is not found is logged."""
        return any(await asyncio.gather(*(self._resolve(host) for host in self._found)))

    async def _resolve(self, host: str) -> bool:
        known = self._found[host]
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                answers = await asyncio.get_running_loop().getaddrinfo(
                    host, None, family=socket.AF_INET, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError, UnicodeError):
            log.warning("SANDBOX_EGRESS: %s could not be looked up", host)
            return False
        found = {IPv4Address(str(address[0])) for *_, address in answers}
        if closed := {address for address in found if is_closed(str(address))}:
            # Whoever runs that name's server must not be able to open our own network to the sandboxes.
            log.warning(
                "SANDBOX_EGRESS: %s has addresses that are closed to sandboxes: %s", host, sorted(map(str, closed))
            )
        new = sorted(found - closed - set(known))
        known[:0] = new
        return bool(new)


def is_closed(network: str) -> bool:
    """Whether an address, or a whole network, is one that no name may open and no sandbox reach by itself."""
    return any(IPv4Network(network).subnet_of(closed) for closed in (*PRIVATE, *NEVER))
