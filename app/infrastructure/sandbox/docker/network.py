"""The sandboxes' network: made once, kept, and never shared with anybody whose rules are others."""

import logging
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.egress import is_closed
from app.infrastructure.sandbox.docker.engine import Engine
from app.infrastructure.sandbox.docker.facts import Container, Network
from app.infrastructure.sandbox.docker.names import EGRESS, ROLE, Names
from app.infrastructure.sandbox.docker.rules import bridge_name

log = logging.getLogger(__name__)

BRIDGE_OPTION = "com.docker.network.bridge.name"
ICC_OPTION = "com.docker.network.bridge.enable_icc"
BACKEND_ALIAS = "anker-backend"
"""What a service that is itself a container is called in the network: by this the others know it."""

_OWN_MOUNT = re.compile(r"/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ")
"""In a line of mountinfo: a file of the container's own folder, and where the container sees it. The host sees other
mounts from these folders, at other places."""
_SHORT_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Members:
    """What the packet filter must know of the network besides the sandboxes in it."""

    subnets: tuple[str, ...]
    services: tuple[str, ...]
    """The addresses of containers that are services like this one."""
    others: tuple[str, ...]
    """The subnets of the engine's other networks, where they are not among the private addresses."""


class SandboxNetwork:
    """The network of one installation; other installations may use it too when their sandboxes may do the same."""

    def __init__(self, engine: Engine, names: Names, *, name: str, egress: str) -> None:
        """`egress` is what its sandboxes may reach, in the words of the setting."""
        self.name = name
        self.bridge = bridge_name(name)
        self._engine = engine
        self._names = names
        self._egress = egress

    async def ensure(self) -> Network:
        """The network, made first when there is none, and made anew when this installation's setting has changed.

        Raises:
            SandboxUnavailable: it is somebody else's, its sandboxes may do something else, or it cannot be made.
        """
        found = await self._engine.network(self.name)
        if found is not None and self._is_outdated(found):
            await self._clear(found)
            found = None
        if found is None:
            await self._make()
            found = await self._engine.network(self.name)
        if found is None:
            raise SandboxUnavailable(f"The network {self.name} was removed while it was being made.")
        if problem := self._problem(found):
            raise SandboxUnavailable(problem, retry_after=60)
        return found

    async def join(self) -> None:
        """Enter the network if this service is itself a container of this engine: it could not reach a sandbox else."""
        own = await own_container(self._engine)
        if own is None or own.network_mode == "host":
            return
        endpoint = own.endpoints.get(self.name)
        if endpoint is not None and BACKEND_ALIAS in endpoint.aliases:
            return
        try:
            if endpoint is not None:  # somebody else has put it there
                await self._engine.disconnect(own.id, self.name)
            await self._engine.connect(own.id, self.name, [BACKEND_ALIAS])
        except failures.Taken:
            return  # another process of this container was faster
        log.info("this service is a container: it has joined the network %s", self.name)

    async def members(self, network: Network) -> Members:
        """Who else is in `network`, and where the engine's other networks are."""
        services: list[str] = []
        for member in network.members:
            container = await self._engine.container(member)
            if container is not None and (place := container.endpoints.get(self.name)) and ROLE not in container.labels:
                services += [place.address] if BACKEND_ALIAS in place.aliases and place.address else []
        others = [
            subnet
            for other in await self._engine.networks({})
            if other.id != network.id
            for subnet in other.subnets
            if ":" not in subnet and not is_closed(subnet)
        ]
        return Members(_v4(network.subnets), tuple(sorted(services)), tuple(sorted(others)))

    def _is_outdated(self, found: Network) -> bool:
        return self._names.owns(found.labels) and found.labels.get(EGRESS) != self._egress

    async def _clear(self, found: Network) -> None:
        """Remove our network with the sandboxes in it: they were told another truth. Their workspaces stay."""
        log.warning("SANDBOX_EGRESS has changed: ending the sandboxes that were started before, their files stay")
        for member in found.members:
            container = await self._engine.container(member)
            if container is not None and self._names.owns(container.labels):
                await self._engine.remove(container.id)
        try:
            await self._engine.remove_network(found.id)
        except failures.Taken as error:
            raise SandboxUnavailable(
                f"SANDBOX_EGRESS has changed, but other containers than ours are in the network {self.name}: stop "
                "them, or set SANDBOX_NETWORK to a new name.",
                retry_after=60,
            ) from error

    async def _make(self) -> None:
        options = {BRIDGE_OPTION: self.bridge, ICC_OPTION: "false"}
        try:
            await self._engine.create_network(self.name, options, self._names.labels("network", egress=self._egress))
        except failures.Taken:
            return  # another process was faster

    def _problem(self, found: Network) -> str:
        """Why sandboxes must not be put into `found`; "" when they may."""
        if found.labels.get(ROLE) != "network" or found.options.get(BRIDGE_OPTION) != self.bridge:
            return (
                f"There is a network {self.name} already that was made for something else: remove it, or set "
                "SANDBOX_NETWORK to another name."
            )
        if found.options.get(ICC_OPTION) != "false" or found.ipv6 or found.internal or found.driver != "bridge":
            return f"The network {self.name} does not keep sandboxes apart: remove it, and it will be made anew."
        if found.labels.get(EGRESS) != self._egress:
            return (
                f"The network {self.name} belongs to another installation of this service, whose SANDBOX_EGRESS is "
                f"{found.labels.get(EGRESS)!r} (here: {self._egress!r}): set SANDBOX_NETWORK to another name."
            )
        return ""


async def own_container(engine: Engine) -> Container | None:
    """The container that this process runs in, if `engine` runs it."""
    for name in _own_names():
        found = await engine.container(name)
        if found is not None and found.runs and found.id.startswith(name):
            return found
    return None


def _own_names() -> list[str]:
    """What the container of this process may be called, surest first. The engine has the last word."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return []  # no Linux, so no container
    names = list(dict.fromkeys(_OWN_MOUNT.findall(mounts)))
    host = socket.gethostname()
    return [*names, host] if _SHORT_ID.fullmatch(host) else names


def _v4(subnets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each for each in subnets if ":" not in each)
