"""`SANDBOX_PROVIDER=docker`: every session gets a container of its own. Only the engine records which one."""

import asyncio
import logging
from collections.abc import Mapping

from app.application import context
from app.domain.errors import SandboxUnavailable
from app.domain.external.telemetry import NO_SANDBOX_OBSERVER, SandboxObserver
from app.infrastructure.sandbox.docker.container_spec import ContainerSpec, DockerOptions, ObjectNames
from app.infrastructure.sandbox.docker.containers import RunningContainer, SandboxContainers
from app.infrastructure.sandbox.docker.engine import IMAGE_MISSING, DockerEngine, ObjectConflict, ObjectNotFound
from app.infrastructure.sandbox.docker.engine_objects import EngineContainer
from app.infrastructure.sandbox.docker.network.firewall import Firewall
from app.infrastructure.sandbox.docker.pool import SandboxPool
from app.infrastructure.sandbox.docker.reaper import ExistingSessions, Reaper
from app.infrastructure.sandbox.lifecycle import SessionSandboxProvider

log = logging.getLogger(__name__)

REAP_SECONDS = 60.0
"""Time in seconds between two rounds of the reaper."""

CLOSE_SECONDS = 8.0
"""Time in seconds in which `close` removes the pool before it leaves the rest to end itself."""

CHECK_SECONDS = 8.0
"""Time in seconds in which `check` waits for the firewall."""

JOIN_SECONDS = 10.0
"""Time in seconds in which `start` waits until this service's container has joined the network."""

CREATE_ATTEMPTS = 40
"""Maximum number of attempts to create a container that other processes create and remove at the same time."""

RETRY_SECONDS = 0.1
"""Time in seconds between two of these attempts."""


class DockerBackend:
    """Starts, finds and removes the container of a session. Whether one exists is looked up in the engine each time."""

    def __init__(self, containers: SandboxContainers, pool: SandboxPool) -> None:
        """Use the provider's parts."""
        self._containers = containers
        self._engine = containers.engine
        self._firewall = containers.firewall
        self._pool = pool

    async def is_alive(self, known: RunningContainer) -> bool:
        """Return whether the sandbox responded just now, or does so when asked."""
        return known.is_fresh or await self._containers.is_alive(known)

    async def find_end(self, known: RunningContainer) -> str | None:
        """Return how the container ended, or None."""
        return await self._containers.find_end(known)

    async def find(self, session_id: str, known: RunningContainer | None) -> RunningContainer | None:
        """Return the session's sandbox if its container runs and responds.

        Raises:
            SandboxUnavailable: The engine is unavailable, or the firewall is not in place.
        """
        # The firewall comes first: if SANDBOX_EGRESS has changed, it removes the sandboxes that were started before.
        await self._firewall.ensure()
        running = await self._resume(session_id, await self._containers.find(session_id), known)
        if running is None and known is not None:
            # It has ended without us. That also happens when the engine is restarted, which drops the rules.
            self._firewall.invalidate()
        return running

    async def start(self, session_id: str, known: RunningContainer | None) -> RunningContainer:
        """Return the session's sandbox: the running one, else one from the pool, else a new one.

        Raises:
            SandboxUnavailable: None can be started.
        """
        if known is not None and known.is_fresh:
            return known
        if (running := await self.find(session_id, known)) is not None:
            return running
        await self._firewall.ensure()
        return await self._adopt(session_id) or await self._create(session_id)

    async def stop(self, session_id: str, instance_id: str) -> None:
        """Stop and remove the container `instance_id`. The workspace stays."""
        await self._containers.stop(instance_id)

    async def destroy(self, session_id: str) -> None:
        """Remove the session's container and workspace."""
        await self._containers.destroy(session_id)

    async def _resume(
        self, session_id: str, found: EngineContainer | None, known: RunningContainer | None
    ) -> RunningContainer | None:
        """Return a connection to the container that exists if it can go on. Remove it if it runs but cannot."""
        if found is not None and found.state == "paused":
            await self._engine.unpause_container(found.id)
        elif found is None or not found.running:
            return None
        if not self._containers.in_network(found):
            log.warning("replacing the sandbox of session %s: it is in another network", session_id)
            await self._engine.remove_container(found.id)
            return None
        same = known is not None and known.instance_id == found.id
        running = known if known is not None and same else self._containers.connect(found)
        if await self._containers.wait_until_ready(running) and await running.try_renew():
            return running
        problem = running.problem or "it does not respond"
        log.warning("replacing the sandbox of session %s: it runs, but %s", session_id, problem)
        if running is not known:
            await running.close()
        await self._engine.remove_container(found.id)
        return None

    async def _adopt(self, session_id: str) -> RunningContainer | None:
        """Return a sandbox of the pool, if there is one and the session has no workspace yet."""
        while (running := await self._pool.take()) is not None:
            adoption = await self._containers.adopt(running.container, session_id)
            if adoption == "adopted":
                return running
            if adoption == "not needed":
                self._pool.put_back(running)
                return None
            await self._pool.discard(running)
        return None

    async def _create(self, session_id: str) -> RunningContainer:
        async with self._containers.start_slots.slot(context.current_owner()):
            for _ in range(CREATE_ATTEMPTS):
                found = await self._containers.find(session_id)
                try:
                    if found is not None and found.ended:
                        await self._remove_ended(session_id, found)
                        found = None
                    if found is None:
                        await self._containers.create(session_id)
                    return await self._containers.launch(self._containers.names.of_session(session_id))
                except ObjectConflict:
                    await asyncio.sleep(RETRY_SECONDS)
                except ObjectNotFound:
                    # Another process has removed the container or the network.
                    self._firewall.invalidate()
                    await self._firewall.ensure()
        raise SandboxUnavailable(
            "The session's sandbox did not start: other processes keep creating and removing its container."
        )

    async def _remove_ended(self, session_id: str, ended: EngineContainer) -> None:
        log.warning(
            "replacing the sandbox of session %s, which has ended (exit status %d%s)",
            session_id,
            ended.exit_code,
            ", out of memory" if ended.out_of_memory else "",
        )
        await self._engine.remove_container(ended.id)


class DockerSandboxes(SessionSandboxProvider[RunningContainer]):
    """`SandboxProvider` with a container and a volume per session, which every process finds in the engine.

    Start it with `start` or `async with`. `close` removes the pool. The sandboxes of sessions keep running, and end
    themselves if no service uses them for long.
    """

    def __init__(
        self,
        options: DockerOptions,
        *,
        installation: str,
        existing: ExistingSessions,
        environment: Mapping[str, str] | None = None,
        reap_seconds: float = REAP_SECONDS,
        observer: SandboxObserver = NO_SANDBOX_OBSERVER,
    ) -> None:
        """Create the provider without contacting the engine.

        Args:
            options: The operator's settings.
            installation: Identifies all processes that share one store.
            existing: Returns those of the given session ids that exist, or raises an `AnkerError`.
            environment: The variables that say where the engine is (`DOCKER_HOST`); those of this process when None.
            reap_seconds: Time between two rounds of the reaper.
            observer: Is told of starts and removals.

        Raises:
            ValueError: `options.memory` is not a size.
        """
        names, spec = ObjectNames(options.name_prefix, installation), ContainerSpec(options)
        engine = DockerEngine(environment)
        firewall = Firewall(engine, names, spec)
        containers = SandboxContainers(engine, names, spec, firewall)
        self.firewall = firewall
        self.pool = SandboxPool(containers, size=options.pool_size)
        super().__init__(DockerBackend(containers, self.pool), key=names.of_session, observer=observer)
        self._image = options.image
        self._engine = engine
        ttl_seconds = options.ttl_minutes * 60
        self._docker_reaper = Reaper(
            containers, self.pool, self.sessions, existing, ttl_seconds=ttl_seconds, observer=observer
        )
        self._reap_seconds = reap_seconds
        self._reap_lock = asyncio.Lock()

    async def start(self) -> None:
        """Begin to set up the network, to reap and to fill the pool, in the background. Never raises.

        The engine may be started later: `check` and the first sandbox show whether it is available. A service that
        runs in a container joins the network first, because an engine may move the container's published ports to that
        network, which breaks open connections.
        """
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                await self.firewall.join_network()
        except (TimeoutError, SandboxUnavailable) as error:
            log.warning("this service cannot join the sandboxes' network yet: %s", error)
        self.start_reaper(self._reap_seconds)
        self.pool.refill()

    async def reap(self) -> None:
        """Refresh the firewall, remove what no session needs, and maintain the pool, once.

        Raises:
            SandboxUnavailable: The engine is unavailable.
        """
        async with self._reap_lock:
            try:
                await self.firewall.refresh()
            except SandboxUnavailable as error:
                log.warning("the firewall of the sandboxes' network is not in place: %s", error)
            await self._docker_reaper.run_round()
            self.drop_empty_sessions()
            await self.pool.maintain()

    def counts(self) -> Mapping[str, int]:
        """Implement `SandboxProvider.counts`."""
        return {**super().counts(), "pooled": len(self.pool.ready_ids)}

    async def check(self) -> str | None:
        """Return why no sandbox could be started now, or None."""
        try:
            await self._engine.ping()
            if not await self._engine.has_image(self._image):
                return IMAGE_MISSING
            async with asyncio.timeout(CHECK_SECONDS):
                await self.firewall.ensure()
        except TimeoutError:
            return "The Docker engine is slow: the sandboxes' network is not set up yet."
        except SandboxUnavailable as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Remove the pool and cancel work in progress. The sandboxes of sessions keep running. Idempotent."""
        if self.is_closed:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await super().close()
                await self.pool.close()
        except TimeoutError:
            log.warning("the Docker engine is slow: some pooled sandboxes were left to end themselves")
        await self.firewall.close()
        await self._docker_reaper.close()
        self._engine.close()
