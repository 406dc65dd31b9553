"""The network guard: no sandbox is started unless the host's packet filter keeps it from where it must not go."""

import asyncio
import logging
import time
from collections.abc import Callable
from importlib import resources
from ipaddress import AddressValueError, IPv4Address

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker.egress import Addresses, Egress, EgressList
from app.infrastructure.sandbox.docker.engine import Engine
from app.infrastructure.sandbox.docker.facts import Network
from app.infrastructure.sandbox.docker.names import Names
from app.infrastructure.sandbox.docker.network import SandboxNetwork, own_container
from app.infrastructure.sandbox.docker.rules import Plan
from app.infrastructure.sandbox.docker.spec import Config, Reach, Recipe

log = logging.getLogger(__name__)

CHECK_SECONDS = 240.0
"""After so long the rules are put in place once more: a firewall that is reloaded drops what it does not know."""

NO_CHAIN = 3
"""The helper's exit status when the engine does not use iptables."""

DONE = "guarded"


class Guard:
    """The rules for one network. `ensure` is cheap while they are known to be in place."""

    def __init__(
        self,
        engine: Engine,
        names: Names,
        recipe: Recipe,
        network: SandboxNetwork,
        egress: Egress,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._names = names
        self._recipe = recipe
        self._network = network
        self._egress: Egress = egress
        self._addresses = Addresses(egress.hosts if isinstance(egress, EgressList) else ())
        self._clock = clock
        self._applied: float | None = None
        self._resolvers: tuple[str, ...] | None = None
        self._applying: asyncio.Task[None] | None = None
        self._services: tuple[str, ...] = ()
        self._absences = 0

    @property
    def services(self) -> tuple[str, ...]:
        """Addresses in the network whose owners may reach sandboxes: no sandbox may have one of them."""
        return self._services

    @property
    def reach(self) -> Reach:
        """What a new sandbox is told about the network."""
        return Reach(resolves=self._egress == "open", hosts=self._addresses.pins)

    def doubt(self) -> None:
        """Have the rules put in place once more before the next start: the engine may be another than before."""
        self._applied = self._resolvers = None

    async def ensure(self) -> None:
        """Return when the network and its rules are in place.

        Raises:
            SandboxUnavailable: they are not, and could not be put there.
        """
        if self._applied is None or self._absences != self._engine.absences:
            await self._apply()

    async def refresh(self) -> None:
        """Look the listed hosts up again, and see to it that the rules are in place; raises as `ensure`."""
        news = await self._addresses.resolve()
        if news or self._applied is None or self._clock() - self._applied >= CHECK_SECONDS:
            await self._apply()
        await self.ensure()

    async def enter(self) -> None:
        """Make the network and enter it, where this service is itself a container; raises as `ensure`."""
        if await own_container(self._engine) is not None:
            await self._network.ensure()
            await self._network.join()

    async def retire(self, network: str) -> None:
        """Take the rules for a network that is no more out of the packet filter."""
        await self._change("remove", Plan(network=network, egress="none", subnets=()))

    async def close(self) -> None:
        """End what is under way."""
        if self._applying is not None:
            self._applying.cancel()
            await asyncio.wait({self._applying})

    async def _apply(self) -> None:
        """One at a time, whoever asks; who gives up does not stop it for the others."""
        if self._applying is None or self._applying.done():
            self._applying = asyncio.create_task(self._applied_anew(), name="network guard")
        applying = self._applying
        await asyncio.wait({applying})
        if applying.cancelled():
            raise SandboxUnavailable("The service is shutting down.")
        if (error := applying.exception()) is not None:
            raise error

    async def _applied_anew(self) -> None:
        self._applied, absences = None, self._engine.absences
        network = await self._network.ensure()
        await self._network.join()
        if self._egress == "open" and self._resolvers is None:
            self._resolvers = await self._look_for_resolvers()
        if isinstance(self._egress, EgressList) and not self._addresses.all:
            await self._addresses.resolve()
        await self._change("apply", await self._plan(network))
        self._applied, self._absences = self._clock(), absences

    async def _plan(self, network: Network) -> Plan:
        # Once more: this service may have joined it since.
        members = await self._network.members(await self._engine.network(network.id) or network)
        self._services = members.services
        return Plan(
            network=self._network.name,
            egress=self._egress,
            subnets=members.subnets,
            services=members.services,
            resolvers=self._resolvers or (),
            addresses=self._addresses.all,
            others=members.others,
        )

    async def _change(self, action: str, plan: Plan) -> None:
        variables = {
            "ACTION": action,
            "BRIDGE": plan.bridge,
            "FORWARD": plan.forward,
            "INPUT": plan.input,
            "REFUSAL": plan.refusal,
            "TABLE": plan.table(),
        }
        script = resources.files(__package__ or "").joinpath("guard.sh").read_text("utf-8")
        labels = self._names.labels("guard")
        status, said = await self._run(self._recipe.helper(script=script, variables=variables, labels=labels))
        # iptables remarks in this form that rules of the other kind exist, which is no fault.
        lines = [line for line in said.splitlines() if not line.startswith("#")]
        if status == 0 and DONE in lines:
            if len(lines) > 1:
                log.warning("the network guard: %s", said)
            return
        log.error("the network guard could not be set up (exit status %d): %s", status, said)
        why = "the Docker engine does not use iptables." if status == NO_CHAIN else "the service's log says why."
        raise SandboxUnavailable(f"Sandboxes cannot be kept from this machine's networks, so none is started: {why}")

    async def _look_for_resolvers(self) -> tuple[str, ...]:
        """Where the engine sends a container's questions for names: what it tells one on its own network."""
        glance = self._recipe.glance(script="cat /etc/resolv.conf", labels=self._names.labels("guard"))
        status, said = await self._run(glance)
        if status:
            log.warning("the engine's resolvers are not known (exit status %d): %s", status, said)
        words = [line.split() for line in said.splitlines()]
        return tuple(line[1] for line in words if line[:1] == ["nameserver"] and len(line) > 1 and _is_ipv4(line[1]))

    async def _run(self, config: Config) -> tuple[int, str]:
        """Run a helper to its end; its exit status and what it said."""
        helper = await self._engine.create(self._names.guard(), config)
        try:
            await self._engine.start(helper)
            return await self._engine.wait(helper), await self._engine.last_words(helper)
        finally:
            await self._engine.remove(helper)


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True
