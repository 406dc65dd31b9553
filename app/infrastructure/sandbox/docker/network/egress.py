"""What sandboxes may connect to: the setting `SANDBOX_EGRESS`, and the firewall rules that follow from it.

The rules are a table for `iptables-restore`. `DOCKER-USER` and `FORWARD` (forwarded packets) and `INPUT` (packets for
the host) jump to our chains for packets of the sandboxes' bridge only. `RETURN` leaves the decision to the engine's own
rules, which let containers out and keep the engine's networks apart. Packets are rejected rather than dropped, so
that a forbidden connection fails at once. The kernel limits the rate of its ICMP messages, but not that of TCP resets.
"""

import asyncio
import hashlib
import logging
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Literal

from app.infrastructure.sandbox.docker.engine_objects import SANDBOX_PORT

log = logging.getLogger(__name__)

PRIVATE_NETWORKS = tuple(
    IPv4Network(each)
    for each in (
        *("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"),
        *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    )
)
"""Networks of the operator, and networks that are no part of the internet. Closed, unless `SANDBOX_EGRESS` lists an
address or network within them. With `FORBIDDEN_NETWORKS`, they cover IANA's registry of special-purpose addresses."""

FORBIDDEN_NETWORKS = tuple(
    IPv4Network(each)
    for each in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # Services of cloud providers for their virtual machines, outside the link-local network.
        *("100.100.100.200/32", "168.63.129.16/32"),
    )
)
"""Loopback, link-local (with cloud metadata), protocol, multicast and reserved networks. Closed to every sandbox."""

HOST_NETWORKS = "@host-networks@"
"""Stands in a rule of the table for each network of the host's interfaces, which only `firewall.sh` knows."""

RESOLVE_SECONDS = 5.0
"""Timeout in seconds of one name lookup."""

MAX_ADDRESSES = 512
"""Maximum number of resolved addresses per list, so that a name with ever new addresses does not fill the firewall."""

MAX_PINNED_ADDRESSES = 4
"""Maximum number of addresses per name in a sandbox's `/etc/hosts`."""

_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*")

_NUMERIC = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)\.?(/.*)?")
"""An entry whose last label is a number: an address, possibly in a form such as 0x7f.1 or 2130706433."""

_RETURN = "-j RETURN"
_TRACKED = [f"-m conntrack --ctstate ESTABLISHED {_RETURN}", "-m conntrack --ctstate INVALID -j DROP"]
_REJECT = ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-admin-prohibited"]


@dataclass(frozen=True, slots=True)
class EgressAllowlist:
    """The only destinations that are allowed: lower-case host names, and networks (an address has length 32)."""

    hosts: tuple[str, ...]
    networks: tuple[IPv4Network, ...]

    def __str__(self) -> str:
        """Return one canonical line: equal for lists with the same meaning."""
        return ",".join([*self.hosts, *(str(each).removesuffix("/32") for each in self.networks)])


Egress = Literal["open", "none"] | EgressAllowlist


def parse_egress(text: str) -> Egress:
    """Parse `open`, `none`, or a list of host names, IPv4 addresses and networks, separated by commas or spaces.

    Raises:
        ValueError: An entry cannot be used; the message names it and the reason.
    """
    entries = text.replace(",", " ").lower().split()
    if entries in (["open"], ["none"]):
        return "open" if entries == ["open"] else "none"
    if not entries:
        raise ValueError("must be open, none, or a list of hosts")
    hosts: set[str] = set()
    networks: set[IPv4Network] = set()
    for entry in entries:
        network = _parse_network(entry)
        if network is not None:
            networks.add(network)
        else:
            hosts.add(_parse_host(entry))
    return EgressAllowlist(tuple(sorted(hosts)), tuple(sorted(networks)))


def _parse_network(entry: str) -> IPv4Network | None:
    """Return the network or address; None if the entry is a host name."""
    if ip_version(entry) == 6:
        raise ValueError(f"{entry}: sandboxes have no IPv6")
    if not _NUMERIC.fullmatch(entry):
        return None
    try:
        network = IPv4Network(entry)
    except ValueError:
        raise ValueError(f"{entry}: must be an address such as 192.0.2.7, or a network such as 192.0.2.0/24") from None
    for forbidden in FORBIDDEN_NETWORKS:
        if network.subnet_of(forbidden):
            raise ValueError(f"{entry}: addresses of {forbidden} are closed to every sandbox")
    return network


def ip_version(address: str) -> Literal[4, 6] | None:
    """Return the IP version of an address; None if the text is not an address."""
    try:
        return ip_address(address).version
    except ValueError:
        return None


def _parse_host(entry: str) -> str:
    if "*" in entry:
        raise ValueError(f"{entry}: the firewall sees addresses, not names: list every host by its full name")
    if "/" in entry or ":" in entry:
        raise ValueError(f"{entry}: must be a host without scheme, port and path; all of its ports are open")
    if entry in ("open", "none"):
        raise ValueError(f"{entry}: must be the only entry")
    if not _HOST.fullmatch(entry.removesuffix(".")) or entry == "localhost":
        raise ValueError(f"{entry}: not the name of a host")
    return entry.removesuffix(".")


def is_closed(network: str) -> bool:
    """Return whether an address or network is private or forbidden. No host name can open such an address."""
    return any(IPv4Network(network).subnet_of(closed) for closed in (*PRIVATE_NETWORKS, *FORBIDDEN_NETWORKS))


class HostAddresses:
    """The addresses of listed hosts. Addresses are never removed: a sandbox may still use one that it looked up."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """Start without addresses; `resolve` finds them."""
        self._found: dict[str, list[IPv4Address]] = {host: [] for host in hosts}

    @property
    def all(self) -> tuple[IPv4Address, ...]:
        """Every address found so far."""
        return tuple(sorted({address for found in self._found.values() for address in found})[:MAX_ADDRESSES])

    @property
    def pinned(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a name and an address of it, the newest addresses first."""
        pairs = ((host, str(each)) for host, found in self._found.items() for each in found[:MAX_PINNED_ADDRESSES])
        return tuple(pairs)

    async def resolve(self) -> bool:
        """Look up all names again and return whether there is a new address. Log names that are not found."""
        return any(await asyncio.gather(*(self._resolve(host) for host in self._found)))

    async def _resolve(self, host: str) -> bool:
        known = self._found[host]
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                results = await asyncio.get_running_loop().getaddrinfo(
                    host, None, family=socket.AF_INET, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError, UnicodeError):
            log.warning("SANDBOX_EGRESS: could not look up %s", host)
            return False
        found = {IPv4Address(str(address[0])) for *_, address in results}
        if closed := {address for address in found if is_closed(str(address))}:
            # Otherwise the operator of that name's DNS server could open private networks to sandboxes.
            log.warning(
                "SANDBOX_EGRESS: ignored addresses of %s that are closed to sandboxes: %s",
                host,
                sorted(map(str, closed)),
            )
        new = sorted(found - closed - set(known))
        known[:0] = new
        return bool(new)


def bridge_name(network: str) -> str:
    """Return the name of a network's bridge: the same on every machine, at most 15 characters."""
    return f"anker-{_hash(network)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirewallRules:
    """The firewall rules for one sandbox network."""

    network: str
    egress: Egress
    subnets: tuple[str, ...] = ()
    """Subnets of the sandbox network."""
    services: tuple[str, ...] = ()
    """Addresses that containers of this service have in the sandbox network."""
    resolvers: tuple[str, ...] = ()
    """DNS servers that the engine forwards a sandbox's queries to."""
    addresses: tuple[IPv4Address, ...] = ()
    """Addresses of the hosts in `egress`."""
    other_subnets: tuple[str, ...] = ()
    """Subnets of the engine's other networks that are not private."""

    @property
    def bridge(self) -> str:
        """The name of the bridge."""
        return bridge_name(self.network)

    @property
    def forward_chain(self) -> str:
        """The name of the chain for packets that the host forwards."""
        return f"ANKER-F-{_hash(self.network)}"

    @property
    def input_chain(self) -> str:
        """The name of the chain for packets to the host."""
        return f"ANKER-I-{_hash(self.network)}"

    @property
    def reject_chain(self) -> str:
        """The name of the chain in which the other two reject packets."""
        return f"ANKER-R-{_hash(self.network)}"

    def table(self) -> str:
        """Return the three chains as input for `iptables-restore`."""
        chains = {
            self.reject_chain: _REJECT,
            self.forward_chain: self._forward_rules(),
            self.input_chain: self._input_rules(),
        }
        lines = [f":{chain} - [0:0]" for chain in chains]
        lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
        return "\n".join(["*filter", *lines, "COMMIT", ""])

    def _forward_rules(self) -> list[str]:
        rules, reject = _TRACKED.copy(), f"-j {self.reject_chain}"
        for service in self.services:
            rules += [f"-s {service} -d {subnet} -p tcp --dport {SANDBOX_PORT} -j ACCEPT" for subnet in self.subnets]
            # The service's default route may lead over this bridge.
            rules.append(f"-s {service} ! -o {self.bridge} {_RETURN}")
        # DNAT means a port that the host publishes, at whichever of its addresses.
        rules.append(f"-m conntrack --ctstate DNAT {reject}")
        rules += self._dns_rules()
        rules.append(f"-o {self.bridge} {reject}")
        rules += [f"-d {network} {reject}" for network in FORBIDDEN_NETWORKS]
        rules += self._allowed(inward=True)
        closed = (*map(str, PRIVATE_NETWORKS), *self.other_subnets, HOST_NETWORKS)
        rules += [f"-d {network} {reject}" for network in closed]
        if self.egress == "open":
            return [*rules, _RETURN]
        return [*rules, *self._allowed(inward=False), reject]

    def _input_rules(self) -> list[str]:
        services = [f"-s {service} {_RETURN}" for service in self.services]
        return [*_TRACKED, *services, *self._dns_rules(), f"-j {self.reject_chain}"]

    def _dns_rules(self) -> list[str]:
        if self.egress != "open":
            return []
        pairs = [(resolver, protocol) for resolver in self.resolvers for protocol in ("udp", "tcp")]
        return [f"-d {resolver} -p {protocol} --dport 53 {_RETURN}" for resolver, protocol in pairs]

    def _allowed(self, *, inward: bool) -> list[str]:
        """Return rules for the listed destinations.

        Args:
            inward: True for addresses, and networks within private ones, which may belong to the operator. False for
                other networks, which do not open private ones that they contain, and for hosts.
        """
        if isinstance(self.egress, str):
            return []
        networks = [each for each in self.egress.networks if _may_be_inward(each) == inward]
        networks += [] if inward else [IPv4Network(each) for each in self.addresses]
        return [f"-d {network} {_RETURN}" for network in networks]


def _may_be_inward(listed: IPv4Network) -> bool:
    return listed.num_addresses == 1 or any(map(listed.subnet_of, PRIVATE_NETWORKS))


def _hash(network: str) -> str:
    return hashlib.sha256(network.encode()).hexdigest()[:9]
