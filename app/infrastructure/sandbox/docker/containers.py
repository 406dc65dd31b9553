"""Sandbox containers: stored in the engine, started until they respond, and connected to while they run."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from app.domain.errors import SandboxUnavailable
from app.infrastructure.fair_slots import FairSlots
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.running_sandbox import RESPONSE_SECONDS, RunningSandbox
from app.infrastructure.sandbox.docker.container_spec import (
    VOLUME_LABEL,
    ContainerSpec,
    ObjectNames,
)
from app.infrastructure.sandbox.docker.engine import (
    DockerEngine,
    EngineRefused,
    EngineUnavailable,
    ObjectConflict,
    ObjectNotFound,
)
from app.infrastructure.sandbox.docker.engine_objects import SANDBOX_PORT, EngineContainer, EngineVolume
from app.infrastructure.sandbox.docker.network.firewall import Firewall

log = logging.getLogger(__name__)

Adoption = Literal["adopted", "not needed", "lost"]

STARTS_AT_ONCE = 4
"""Maximum number of containers that start at the same time."""

STOP_SECONDS = 3
"""Time that programs in an idle sandbox get, in seconds, to end by themselves."""

CONNECT_SECONDS = 1.5
"""Timeout in seconds of a connection attempt. The container is on this machine, so its kernel accepts at once."""

READY_SECONDS = 30.0
"""Time in seconds from the start of a container in which its sandbox must respond."""

BUSY_SECONDS = 10.0
"""Time in seconds for which a container that started longer ago may be too busy to respond."""

BROKEN_SECONDS = 5.0
"""Time in seconds for which a sandbox may respond that its shells do not work."""

BROKEN_POLL_SECONDS = 0.5
"""Time in seconds between two questions to such a sandbox."""

PROMPT_SECONDS = 0.25
"""Response time in seconds above which the engine is asked whether the container still exists."""

POLL_SECONDS = 0.005
"""Time in seconds between two connection attempts while a container starts."""

INSPECT_SECONDS = 0.5
"""Time in seconds between two checks that the container still runs while it starts."""

END_SECONDS = 1.0
"""Time in seconds in which the engine notices that a container has ended."""

END_POLL_SECONDS = 0.05
"""Time in seconds between two questions to the engine whether a container has ended."""


class RunningContainer(RunningSandbox):
    """The sandbox in a running container.

    The engine reuses addresses, but every container has its own token: a response to this token is this container's.
    """

    def __init__(self, container: EngineContainer, address: str, *, exec_seconds: float) -> None:
        """Prepare a connection to `address`, the container's IPv4 address."""
        api = SandboxApiClient(f"http://{address}:{SANDBOX_PORT}", container.token, connect_seconds=CONNECT_SECONDS)
        super().__init__(api, instance_id=container.id, exec_seconds=exec_seconds)
        self.container = container
        self.address = address


class SandboxContainers:
    """The containers and volumes of this installation's sandboxes, which only the engine records.

    A container's name is the lock on its session: the engine accepts each name once.
    Every method raises `SandboxUnavailable` if the engine is unavailable or refuses.
    """

    def __init__(self, engine: DockerEngine, names: ObjectNames, spec: ContainerSpec, firewall: Firewall) -> None:
        """Create containers with `spec`, named by `names`, in the network of `firewall`."""
        self.engine = engine
        self.names = names
        self.firewall = firewall
        self.start_slots = FairSlots(STARTS_AT_ONCE)
        """Held while a container starts, which costs seconds of CPU. Waiting for it has no timeout."""
        self._spec = spec
        self._network = spec.options.network

    async def find(self, session_id: str) -> EngineContainer | None:
        """Return the session's container in any state, or None."""
        found = await self.engine.container(self.names.of_session(session_id))
        if found is not None and not self.names.owns(found.labels):
            raise _foreign("container")
        return found

    async def create(self, session_id: str) -> None:
        """Create the session's container on its existing workspace or a new one.

        Raises:
            ObjectConflict: Another process has created it.
        """
        name = self.names.of_session(session_id)
        labels = self.names.labels("sandbox", session=session_id)
        workspace = await self.engine.get_or_create_volume(name, labels)
        if not self.names.owns(workspace.labels):
            raise _foreign("volume")
        volume = workspace.labels.get(VOLUME_LABEL) or workspace.name
        await self._create(name, volume, labels)

    async def create_pooled(self, name: str, maker: str) -> None:
        """Create a container without a session, with a workspace of its own."""
        await self._create(name, name, self.names.labels("pool", session="", volume=name, maker=maker))

    async def adopt(self, pooled: EngineContainer, session_id: str) -> Adoption:
        """Give a pooled container to a session.

        The pointer volume is created first: from then on, every process creates the session's container on this
        workspace. Creating a volume that exists returns the existing one, so a session gets only one pointer.

        Returns:
            `adopted`; `not needed` if the session already has a workspace; `lost` if the pooled container is gone, or
            another process has created the session's container.
        """
        name = self.names.of_session(session_id)
        volume = pooled.labels[VOLUME_LABEL]
        labels = self.names.labels("sandbox", session=session_id, volume=volume)
        pointer = await self.engine.get_or_create_volume(name, labels)
        if pointer.labels.get(VOLUME_LABEL) != volume:
            return "not needed"
        try:
            await self.engine.rename_container(pooled.id, name)
        except (ObjectConflict, ObjectNotFound):
            return "lost"
        return "adopted"

    async def stop(self, container_id: str) -> None:
        """Stop and remove a container. Its workspace stays."""
        await self.engine.stop_container(container_id, grace=STOP_SECONDS)
        await self.engine.remove_container(container_id)

    async def destroy(self, session_id: str) -> None:
        """Remove the session's container, workspace and pointer volume. Idempotent."""
        if (found := await self.find(session_id)) is not None:
            await self.engine.remove_container(found.id)
        volume = await self.engine.volume(self.names.of_session(session_id))
        if volume is not None and self.names.owns(volume.labels):
            await self.destroy_volume(volume)

    async def destroy_volume(self, volume: EngineVolume) -> None:
        """Remove a session's volume, after the workspace that it points to."""
        if target := volume.labels.get(VOLUME_LABEL):
            await self.engine.remove_volume(target)
        await self.engine.remove_volume(volume.name)

    async def destroy_pooled(self, name: str) -> None:
        """Remove a pooled container and its workspace. Idempotent."""
        await self.engine.remove_container(name)
        try:
            await self.engine.remove_volume(name)
        except ObjectConflict:
            # A session points to it, and another process has created that session's container on it.
            log.info("kept the workspace %s of a pooled sandbox: a session uses it", name)

    async def launch(self, name: str) -> RunningContainer:
        """Start the container `name` and wait until its sandbox responds. Remove it if it does not.

        Raises:
            ObjectNotFound: The container or its network does not exist.
            SandboxUnavailable: It does not start.
        """
        try:
            await self.engine.start_container(name)
        except EngineRefused:
            # The engine would refuse it again. A new container is created with the current settings.
            await self.engine.remove_container(name)
            raise
        container = await self.engine.container(name)
        if container is None or not (address := container.address(self._network)):
            raise await self._start_failure(container)
        if address in self.firewall.service_addresses:
            # A service that has ended had this address. Its rules would let this sandbox reach other sandboxes.
            self.firewall.invalidate()
            await self.firewall.ensure()
            if address in self.firewall.service_addresses:
                raise await self._start_failure(container)
        running = self.connect(container)
        try:
            if await self._poll_until_ready(running, READY_SECONDS):
                return running
        except BaseException:
            await running.close()
            raise
        await running.close()
        raise await self._start_failure(container)

    async def is_alive(self, running: RunningContainer) -> bool:
        """Return whether a sandbox that responded before still responds. If so, it counts as used."""
        if running.is_unresponsive:
            return False
        renewal = asyncio.create_task(running.try_renew())
        try:
            await asyncio.wait({renewal}, timeout=PROMPT_SECONDS)
            # Connecting to the address of a removed container takes long to fail, so ask the engine.
            if not renewal.done() and not await self._exists(running):
                return False
            return await renewal
        finally:
            renewal.cancel()

    async def find_end(self, running: RunningContainer) -> str | None:
        """Return how a container ended; None if it runs or the engine does not respond.

        Its connections close before the engine notices the end, which is therefore waited for.
        """
        deadline = time.monotonic() + END_SECONDS
        while True:
            try:
                container = await self.engine.container(running.container.id)
            except EngineUnavailable:
                return None
            if container is None or container.state == "removing":
                return "was removed"
            if container.ended:
                return "ran out of memory" if container.out_of_memory else f"ended with status {container.exit_code}"
            if time.monotonic() >= deadline:
                return None
            await asyncio.sleep(END_POLL_SECONDS)

    async def wait_until_ready(self, running: RunningContainer) -> bool:
        """Return whether the sandbox of a container that another process started becomes ready in time."""
        age = (datetime.now(UTC) - running.container.created).total_seconds()
        return await self._poll_until_ready(running, READY_SECONDS if age < 2 * READY_SECONDS else BUSY_SECONDS)

    def in_network(self, container: EngineContainer) -> bool:
        """Return whether a running container is in the network that SANDBOX_NETWORK names now."""
        return bool(container.address(self._network))

    def connect(self, container: EngineContainer) -> RunningContainer:
        """Return a connection to a running container."""
        address = container.address(self._network)
        return RunningContainer(container, address, exec_seconds=self._spec.options.exec_seconds)

    async def _create(self, name: str, volume: str, labels: Mapping[str, str]) -> None:
        config = self._spec.sandbox(volume=volume, labels=labels, hosts=self.firewall.pinned_hosts)
        await self.engine.create_container(name, config)

    async def _poll_until_ready(self, running: RunningContainer, seconds: float) -> bool:
        """Return whether the sandbox is ready within `seconds`; False as soon as its container has ended."""
        deadline = time.monotonic() + seconds
        next_inspection = time.monotonic() + INSPECT_SECONDS
        is_broken = False
        while (left := deadline - time.monotonic()) > 0:
            # While nothing listens, a bare connection attempt is much cheaper than a request.
            if await _listens(running.address) and await running.is_ready(min(left, RESPONSE_SECONDS)):
                return True
            if running.problem:
                # A moment of load may pass; a sandbox that is full of processes stays so.
                deadline = min(deadline, time.monotonic() + BROKEN_SECONDS) if not is_broken else deadline
                is_broken = True
                await asyncio.sleep(BROKEN_POLL_SECONDS)
            if time.monotonic() >= next_inspection:
                if not await self._exists(running):
                    return False
                next_inspection = time.monotonic() + INSPECT_SECONDS
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _exists(self, running: RunningContainer) -> bool:
        """Return False only if the engine reports that the container has ended or does not exist."""
        try:
            container = await self.engine.container(running.container.id)
        except EngineUnavailable:
            return True
        return container is not None and not container.ended

    async def _start_failure(self, container: EngineContainer | None) -> SandboxUnavailable:
        """Log the end of a container that never responded, remove it, and return the error to raise."""
        if container is not None:
            now = await self.engine.container(container.id)
            output = await self.engine.log_tail(container.id) if now else ""
            log.error(
                "the sandbox %s did not start (%s, exit status %s%s): %s",
                container.name,
                now.state if now else "removed",
                now.exit_code if now else "unknown",
                ", out of memory" if now and now.out_of_memory else "",
                output or "no output",
            )
            await self.engine.remove_container(container.id)
        return SandboxUnavailable("The sandbox did not start; the service's log has its output.")


def _foreign(kind: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"A {kind} with this sandbox's name belongs to another installation: set SANDBOX_NAME_PREFIX.", retry_after=60
    )


async def _listens(address: str) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(address, SANDBOX_PORT)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
