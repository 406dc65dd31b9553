"""What the host's packet filter does with packets that come from the sandboxes' bridge, as `iptables-restore` reads it.

The chains are entered from `DOCKER-USER` (what the host forwards) and from `INPUT` (what is for the host itself) by
packets of the bridge only. `RETURN` leaves the decision to the engine's own rules, which let sandboxes out and keep
the engine's networks apart. A refusal is told to the sender: what must fail should fail at once. The kernel bounds how
many ICMP messages it sends, but not how many resets.
"""

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from app.infrastructure.sandbox.docker.egress import NEVER, PRIVATE, Egress
from app.infrastructure.sandbox.docker.spec import PORT

PASS = "-j RETURN"  # noqa: S105 - no password


def bridge_name(network: str) -> str:
    """The bridge of a network, the same wherever it is made; a name of at most 15 characters."""
    return f"anker-{_hash(network)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the rules are made from."""

    network: str
    egress: Egress
    subnets: tuple[str, ...]
    """The addresses of the sandboxes."""
    services: tuple[str, ...] = ()
    """The addresses that services like this one have in the sandboxes' network."""
    resolvers: tuple[str, ...] = ()
    """Where the engine asks for names on behalf of a sandbox."""
    addresses: tuple[IPv4Address, ...] = ()
    """Those of the hosts that `egress` lists."""
    others: tuple[str, ...] = ()
    """The addresses of the engine's other networks."""

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return bridge_name(self.network)

    @property
    def forward(self) -> str:
        """The name of the chain for what the host forwards."""
        return f"ANKER-F-{_hash(self.network)}"

    @property
    def input(self) -> str:
        """The name of the chain for what is for the host."""
        return f"ANKER-I-{_hash(self.network)}"

    @property
    def refusal(self) -> str:
        """The name of the chain that both of them refuse with."""
        return f"ANKER-R-{_hash(self.network)}"

    def table(self) -> str:
        """The chains, as one change of the table `filter`."""
        chains = {self.refusal: _REFUSING, self.forward: self._forwarded(), self.input: self._received()}
        lines = [f":{chain} - [0:0]" for chain in chains]
        lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
        return "\n".join(["*filter", *lines, "COMMIT", ""])

    def _forwarded(self) -> list[str]:
        rules, refuse = _KNOWN.copy(), f"-j {self.refusal}"
        for service in self.services:
            rules += [f"-s {service} -d {subnet} -p tcp --dport {PORT} -j ACCEPT" for subnet in self.subnets]
            # Its way to the rest of the world may lead over this bridge.
            rules.append(f"-s {service} ! -o {self.bridge} {PASS}")
        # What the host rewrites is one of its own published ports, under whichever of its addresses.
        rules.append(f"-m conntrack --ctstate DNAT {refuse}")
        rules += self._names()
        rules.append(f"-o {self.bridge} {refuse}")
        rules += self._listed(private=True)
        rules += [f"-d {network} {refuse}" for network in (*map(str, (*NEVER, *PRIVATE)), *self.others)]
        if self.egress == "open":
            return [*rules, PASS]
        return [*rules, *self._listed(private=False), refuse]

    def _received(self) -> list[str]:
        passed = [f"-s {service} {PASS}" for service in self.services]
        return [*_KNOWN, *passed, *self._names(), f"-j {self.refusal}"]

    def _names(self) -> list[str]:
        if self.egress != "open":
            return []
        return [
            f"-d {resolver} -p {protocol} --dport 53 {PASS}"
            for resolver in self.resolvers
            for protocol in ("udp", "tcp")
        ]

    def _listed(self, *, private: bool) -> list[str]:
        if isinstance(self.egress, str):
            return []
        networks = [each for each in self.egress.networks if _is_private(each) == private]
        networks += [] if private else [IPv4Network(each) for each in self.addresses]
        return [f"-d {network} {PASS}" for network in networks]


_KNOWN = [f"-m conntrack --ctstate ESTABLISHED {PASS}", "-m conntrack --ctstate INVALID -j DROP"]
_REFUSING = ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-admin-prohibited"]


def _is_private(network: IPv4Network) -> bool:
    """Whether an operator who lists this network means a private one, rather than one that also holds some."""
    return any(network.subnet_of(each) for each in PRIVATE)


def _hash(network: str) -> str:
    return hashlib.sha256(network.encode()).hexdigest()[:9]
