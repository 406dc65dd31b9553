"""The sandboxes' network and its firewall. No sandbox starts unless the host's firewall rules are in place."""

import asyncio
import logging
import re
import socket
import time
from contextlib import suppress
from importlib import resources
from pathlib import Path

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker.container_spec import (
    EGRESS_LABEL,
    ROLE_LABEL,
    Config,
    ContainerSpec,
    ObjectNames,
)
from app.infrastructure.sandbox.docker.engine import DockerEngine, ObjectConflict
from app.infrastructure.sandbox.docker.engine_objects import EngineContainer, EngineNetwork
from app.infrastructure.sandbox.docker.network.egress import (
    Egress,
    EgressAllowlist,
    FirewallRules,
    HostAddresses,
    bridge_name,
    ip_version,
    is_closed,
)

log = logging.getLogger(__name__)

REAPPLY_SECONDS = 240.0
"""Time in seconds after which the rules are applied again: a reload of the host's firewall drops them."""

NO_CHAIN_STATUS = 3
"""Exit status of `firewall.sh` when the engine does not use iptables."""

DONE = "done"
"""Line that `firewall.sh` prints when it has succeeded."""

BRIDGE_OPTION = "com.docker.network.bridge.name"
ICC_OPTION = "com.docker.network.bridge.enable_icc"

BACKEND_ALIAS = "anker-backend"
"""Network alias of a service that runs in a container. Containers with it may connect to sandboxes."""

_OWN_MOUNT = re.compile(r"/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ")
"""A line of mountinfo in which a file of the container's own folder is mounted where a container sees it. The host sees
other mounts of these folders, at other places."""

_SHORT_ID = re.compile(r"[0-9a-f]{12}")


class SandboxNetwork:
    """The bridge network of the sandboxes. Installations share it if their `SANDBOX_EGRESS` is the same."""

    def __init__(self, engine: DockerEngine, names: ObjectNames, *, name: str, egress: str) -> None:
        """Use the network `name`; `egress` is the setting as text, which becomes a label of the network."""
        self.name = name
        self._engine = engine
        self._names = names
        self._egress = egress

    async def ensure(self) -> EngineNetwork:
        """Return the network. Create it if it is missing, and again if this installation's egress has changed.

        Raises:
            SandboxUnavailable: Another owner's network has this name, or it cannot be created.
        """
        found = await self._engine.network(self.name)
        if found is not None and self._names.owns(found.labels) and found.labels.get(EGRESS_LABEL) != self._egress:
            await self._remove(found)
            found = None
        if found is None:
            options = {BRIDGE_OPTION: bridge_name(self.name), ICC_OPTION: "false"}
            labels = self._names.labels("network", egress=self._egress)
            with suppress(ObjectConflict):  # another process created it first
                await self._engine.create_network(self.name, options, labels)
            found = await self._engine.network(self.name)
        if found is None:
            raise SandboxUnavailable(f"The network {self.name} was removed while it was being created.")
        if problem := self._problem(found):
            raise SandboxUnavailable(problem, retry_after=60)
        return found

    async def join(self) -> None:
        """Connect this process's own container, if there is one: it could not reach sandboxes otherwise."""
        own = await own_container(self._engine)
        if own is None or own.network_mode == "host":
            return
        endpoint = own.endpoints.get(self.name)
        if endpoint is not None and BACKEND_ALIAS in endpoint.aliases:
            return
        try:
            if endpoint is not None:  # connected by another program, without the alias
                await self._engine.disconnect(own.id, self.name)
            await self._engine.connect(own.id, self.name, [BACKEND_ALIAS])
        except ObjectConflict:
            return  # another process of this container connected it first
        log.info("this service runs in a container, which has joined the network %s", self.name)

    async def service_addresses(self, network: EngineNetwork) -> tuple[str, ...]:
        """Return the addresses of services like this one in `network`."""
        addresses: list[str] = []
        for member in network.members:
            container = await self._engine.container(member)
            if container is None or ROLE_LABEL in container.labels:
                continue
            endpoint = container.endpoints.get(self.name)
            if endpoint and endpoint.address and BACKEND_ALIAS in endpoint.aliases:
                addresses.append(endpoint.address)
        return tuple(sorted(addresses))

    async def other_subnets(self, network: EngineNetwork) -> tuple[str, ...]:
        """Return the IPv4 subnets of the engine's other networks that are not private."""
        others = [each for each in await self._engine.networks({}) if each.id != network.id]
        subnets = [subnet for each in others for subnet in _ipv4(each.subnets) if not is_closed(subnet)]
        return tuple(sorted(subnets))

    async def _remove(self, found: EngineNetwork) -> None:
        """Remove our network and its sandboxes, because other rules applied to them. Their workspaces stay."""
        log.warning("SANDBOX_EGRESS has changed: removing the sandboxes that were started before, their files stay")
        for member in found.members:
            container = await self._engine.container(member)
            if container is not None and self._names.owns(container.labels):
                await self._engine.remove_container(container.id)
        try:
            await self._engine.remove_network(found.id)
        except ObjectConflict as error:
            raise SandboxUnavailable(
                f"SANDBOX_EGRESS has changed, but containers of other owners are in the network {self.name}: stop "
                "them, or set SANDBOX_NETWORK to a new name.",
                retry_after=60,
            ) from error

    def _problem(self, found: EngineNetwork) -> str:
        """Return why sandboxes must not be connected to `found`; "" if they may."""
        if found.labels.get(ROLE_LABEL) != "network" or found.options.get(BRIDGE_OPTION) != bridge_name(self.name):
            return f"The network {self.name} has another purpose: remove it, or set SANDBOX_NETWORK to another name."
        if found.options.get(ICC_OPTION) != "false" or found.ipv6 or found.internal or found.driver != "bridge":
            return f"The network {self.name} does not isolate sandboxes: remove it, and the service creates it again."
        if found.labels.get(EGRESS_LABEL) != self._egress:
            theirs = found.labels.get(EGRESS_LABEL)
            log.error("the SANDBOX_EGRESS of %s is %r, here %r", self.name, theirs, self._egress)
            return (
                f"The network {self.name} belongs to another installation of this service, with another "
                "SANDBOX_EGRESS (the service's log names both): set SANDBOX_NETWORK to another name."
            )
        return ""


class Firewall:
    """The firewall rules of the sandbox network. `ensure` costs nothing while they are known to be in place."""

    def __init__(self, engine: DockerEngine, names: ObjectNames, spec: ContainerSpec) -> None:
        """Protect the network in the options of `spec` according to their egress."""
        egress = spec.options.egress
        self.network = SandboxNetwork(engine, names, name=spec.options.network, egress=str(egress))
        self._engine = engine
        self._names = names
        self._spec = spec
        self._egress: Egress = egress
        self._addresses = HostAddresses(egress.hosts if isinstance(egress, EgressAllowlist) else ())
        self._applied_at: float | None = None
        self._applied_outages = 0
        self._resolvers: tuple[str, ...] | None = None
        self._applying: asyncio.Task[None] | None = None
        self.service_addresses: tuple[str, ...] = ()
        """Addresses in the network that may connect to sandboxes. No sandbox may have one of them."""

    @property
    def pinned_hosts(self) -> tuple[tuple[str, str], ...]:
        """Host names and addresses for the `/etc/hosts` of a new sandbox."""
        return self._addresses.pinned

    def invalidate(self) -> None:
        """Apply the rules again before the next start, because the engine may have been restarted."""
        self._applied_at = self._resolvers = None

    async def ensure(self) -> None:
        """Return when the network and its rules are in place.

        Raises:
            SandboxUnavailable: They are not, and could not be put in place.
        """
        if self._applied_at is None or self._applied_outages != self._engine.outages:
            await self._apply()

    async def refresh(self) -> None:
        """Look up the listed hosts again and apply the rules if they changed or are old; raises as `ensure`."""
        changed = await self._addresses.resolve()
        if changed or self._applied_at is None or time.monotonic() - self._applied_at >= REAPPLY_SECONDS:
            await self._apply()
        await self.ensure()

    async def join_network(self) -> None:
        """Create the network and join it if this service runs in a container; raises as `ensure`."""
        if await own_container(self._engine) is not None:
            await self.network.ensure()
            await self.network.join()

    async def remove_rules(self, network: str) -> None:
        """Remove the rules of a network that no longer exists."""
        await self._run_script("remove", FirewallRules(network=network, egress="none"))

    async def close(self) -> None:
        """Cancel work in progress."""
        if self._applying is not None:
            self._applying.cancel()
            await asyncio.wait({self._applying})

    async def _apply(self) -> None:
        """Apply the rules once for all concurrent callers. A cancelled caller does not stop it for the others."""
        if self._applying is None or self._applying.done():
            self._applying = asyncio.create_task(self._apply_now(), name="sandbox firewall")
        applying = self._applying
        await asyncio.wait({applying})
        if applying.cancelled():
            raise SandboxUnavailable("The service is shutting down.")
        if (error := applying.exception()) is not None:
            raise error

    async def _apply_now(self) -> None:
        self._applied_at, outages = None, self._engine.outages
        network = await self.network.ensure()
        await self.network.join()
        if self._egress == "open" and self._resolvers is None:
            self._resolvers = await self._find_resolvers()
        if isinstance(self._egress, EgressAllowlist) and not self._addresses.all:
            await self._addresses.resolve()
        # Inspect the network again: this service may have joined it just now.
        network = await self._engine.network(network.id) or network
        self.service_addresses = await self.network.service_addresses(network)
        rules = FirewallRules(
            network=self.network.name,
            egress=self._egress,
            subnets=_ipv4(network.subnets),
            services=self.service_addresses,
            resolvers=self._resolvers or (),
            addresses=self._addresses.all,
            other_subnets=await self.network.other_subnets(network),
        )
        await self._run_script("apply", rules)
        self._applied_at, self._applied_outages = time.monotonic(), outages

    async def _run_script(self, action: str, rules: FirewallRules) -> None:
        variables = {
            "ACTION": action,
            "BRIDGE": rules.bridge,
            "FORWARD_CHAIN": rules.forward_chain,
            "INPUT_CHAIN": rules.input_chain,
            "REJECT_CHAIN": rules.reject_chain,
            "TABLE": rules.table(),
        }
        script = resources.files(__package__ or "").joinpath("firewall.sh").read_text("utf-8")
        labels = self._names.labels("guard")
        status, output = await self._run(self._spec.firewall_helper(script=script, variables=variables, labels=labels))
        # iptables prints a comment when rules of its other variant exist, which is not an error.
        lines = [line for line in output.splitlines() if not line.startswith("#")]
        if status == 0 and DONE in lines:
            if len(lines) > 1:
                log.warning("setting up the sandbox firewall reported: %s", output)
            return
        log.error("could not set up the sandbox firewall (exit status %d): %s", status, output)
        reason = (
            "the Docker engine does not use iptables."
            if status == NO_CHAIN_STATUS
            else "the service's log has the error."
        )
        raise SandboxUnavailable(f"No sandbox can start, because its firewall could not be set up: {reason}")

    async def _find_resolvers(self) -> tuple[str, ...]:
        """Return the DNS servers that the engine forwards to: those it gives to a container on its default network."""
        status, output = await self._run(self._spec.resolver_probe(labels=self._names.labels("guard")))
        if status:
            log.warning("could not determine the engine's DNS servers (exit status %d): %s", status, output)
        fields = [line.split() for line in output.splitlines()]
        return tuple(
            each[1] for each in fields if each[:1] == ["nameserver"] and len(each) > 1 and ip_version(each[1]) == 4
        )

    async def _run(self, config: Config) -> tuple[int, str]:
        """Run a helper container to its end; return its exit status and output."""
        helper = await self._engine.create_container(self._names.new_name("guard"), config)
        try:
            await self._engine.start_container(helper)
            return await self._engine.wait_for_exit(helper), await self._engine.log_tail(helper)
        finally:
            await self._engine.remove_container(helper)


async def own_container(engine: DockerEngine) -> EngineContainer | None:
    """Return the container that this process runs in, if `engine` runs it."""
    for name in _own_container_ids():
        found = await engine.container(name)
        if found is not None and found.running and found.id.startswith(name):
            return found
    return None


def _own_container_ids() -> list[str]:
    """Return possible ids of this process's container, the most likely first. The engine confirms them."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return []  # not Linux, so not in a container
    ids = list(dict.fromkeys(_OWN_MOUNT.findall(mounts)))
    host = socket.gethostname()
    return [*ids, host] if _SHORT_ID.fullmatch(host) else ids


def _ipv4(subnets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each for each in subnets if ":" not in each)
