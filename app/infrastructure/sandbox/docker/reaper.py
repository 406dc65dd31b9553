"""Removes this installation's containers, volumes and networks that no session needs any more.

Objects without this installation's label are never touched.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from app.domain.errors import AnkerError, SandboxUnavailable
from app.domain.external.telemetry import SandboxObserver
from app.infrastructure.sandbox.docker.container_spec import (
    MAKER_LABEL,
    ROLE_LABEL,
    SESSION_LABEL,
    VOLUME_LABEL,
    is_pooled,
)
from app.infrastructure.sandbox.docker.containers import RunningContainer, SandboxContainers
from app.infrastructure.sandbox.docker.engine import EngineUnavailable
from app.infrastructure.sandbox.docker.engine_objects import EngineContainer, EngineVolume
from app.infrastructure.sandbox.docker.pool import SandboxPool
from app.infrastructure.sandbox.lifecycle import SessionSandbox

log = logging.getLogger(__name__)

YOUNG_SECONDS = 120.0
"""Age in seconds up to which an object may still be in use by the process that created it."""

ABANDONED_SECONDS = 180.0
"""Idle time in seconds after which a pooled sandbox has lost its maker, which renews its idle timer every minute."""

MAX_CONCURRENT_CHECKS = 8
"""Maximum number of containers that are checked at the same time."""

ExistingSessions = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Returns those of the given session ids that exist."""


@dataclass(frozen=True, slots=True)
class _Owners:
    """The existing sessions among those that own the objects under review."""

    session_ids: frozenset[str]
    names: frozenset[str]
    """The names of their containers and volumes."""

    def include(self, item: EngineContainer | EngineVolume) -> bool:
        return item.name in self.names or item.labels.get(SESSION_LABEL) in self.session_ids


class Reaper:
    """Removes unneeded objects, one round at a time."""

    def __init__(
        self,
        containers: SandboxContainers,
        pool: SandboxPool,
        sessions: Mapping[str, SessionSandbox[RunningContainer]],
        existing: ExistingSessions,
        *,
        ttl_seconds: float,
        observer: SandboxObserver,
    ) -> None:
        """Prepare the first round.

        Args:
            containers: The provider's containers.
            pool: The provider's pool.
            sessions: The provider's sessions by the name of their container.
            existing: Tells which sessions exist; may raise an `AnkerError`.
            ttl_seconds: Idle time after which a sandbox is stopped.
            observer: Is told of removals.
        """
        self._observer = observer
        self._containers = containers
        self._engine = containers.engine
        self._names = containers.names
        self._firewall = containers.firewall
        self._pool = pool
        self._sessions = sessions
        self._existing = existing
        self._ttl_seconds = ttl_seconds
        self._connections: dict[str, RunningContainer] = {}
        self._silent_since: dict[str, float] = {}

    async def run_round(self) -> None:
        """Review every object of this installation once.

        Raises:
            SandboxUnavailable: The engine is unavailable. The next round does the rest.
        """
        containers = await self._engine.containers(self._names.ownership)
        volumes = await self._engine.volumes(self._names.ownership)
        # Ask for the sessions after listing: a session created meanwhile must count as existing.
        owners = await self._find_owners([*containers, *volumes])
        await self._close_connections(keep={container.id for container in containers})
        limit = asyncio.Semaphore(MAX_CONCURRENT_CHECKS)

        async def review(container: EngineContainer) -> None:
            async with limit:
                await self._log_failure(self._review_container(container, owners))

        await asyncio.gather(*(review(container) for container in containers))
        # Pointer volumes first: the workspaces that they point to are in use until then.
        used = {each.labels.get(VOLUME_LABEL) for each in volumes}
        used |= {name for each in containers for name in each.volumes}
        for volume in sorted(volumes, key=_is_pool_volume):
            await self._log_failure(self._review_volume(volume, owners, is_used=volume.name in used))
        await self._remove_unused_networks()

    async def close(self) -> None:
        """Close the connections to sandboxes."""
        await self._close_connections(keep=())

    async def _review_container(self, container: EngineContainer, owners: _Owners | None) -> None:
        if container.labels.get(ROLE_LABEL) == "guard":
            if not _is_young(container.created):
                await self._engine.remove_container(container.id)
        elif is_pooled(container):
            await self._review_pooled(container)
        elif owners is not None and not owners.include(container):
            log.info("removing the sandbox %s: its session does not exist any more", container.name)
            session = self._sessions.get(container.name)
            await (session.destroy() if session else self._engine.remove_container(container.id))
            self._observer.reaped("no_session")
        elif container.running:
            await self._stop_if_idle(container)
        elif container.ended or (container.state == "created" and not _is_young(container.created)):
            await self._remove_ended(container)

    async def _review_pooled(self, container: EngineContainer) -> None:
        if container.id in self._pool.created_ids:
            return
        young = _is_young(container.created)
        if container.labels.get(MAKER_LABEL) != self._pool.maker:
            # Another process of this installation may still renew it.
            if container.running and not await self._is_idle(container, ABANDONED_SECONDS):
                return
            young = young and not container.ended
        if not young:
            log.info("removing the pooled sandbox %s: the process that created it is gone", container.name)
            await self._containers.destroy_pooled(container.name)
            self._observer.reaped("pool")

    async def _stop_if_idle(self, container: EngineContainer) -> None:
        async def is_idle() -> bool:
            return await self._is_idle(container, self._ttl_seconds)

        if not await is_idle():
            return
        session = self._sessions.get(container.name)
        if session is None:
            await self._containers.stop(container.id)
        elif not await session.stop_if_idle(container.id, is_idle):
            return
        self._observer.reaped("idle")
        log.info("stopped the idle sandbox %s, its files stay", container.name)

    async def _remove_ended(self, container: EngineContainer) -> None:
        log.info("removing the sandbox %s, which has ended, its files stay", container.name)
        if (session := self._sessions.get(container.name)) is not None:
            if session.running is None or session.running.instance_id != container.id:
                return  # a new one is being created in its place
            await session.forget(container.id)
        await self._engine.remove_container(container.id)
        self._observer.reaped("ended")
        # It may have ended because the engine was restarted.
        self._firewall.invalidate()

    async def _review_volume(self, volume: EngineVolume, owners: _Owners | None, *, is_used: bool) -> None:
        if _is_pool_volume(volume):
            if is_used or _is_young(volume.created):
                return
        elif owners is None or owners.include(volume):
            return
        log.info("removing the files in the volume %s: its session does not exist any more", volume.name)
        await self._containers.destroy_volume(volume)

    async def _remove_unused_networks(self) -> None:
        for listed in await self._engine.networks(self._names.ownership):
            if listed.name == self._firewall.network.name:
                continue
            network = await self._engine.network(listed.id)
            if network is not None and not network.members:
                log.info("removing the network %s, which is not used any more", network.name)
                await self._log_failure(self._engine.remove_network(network.id))
                await self._firewall.remove_rules(network.name)

    async def _is_idle(self, container: EngineContainer, seconds: float) -> bool:
        """Return whether the sandbox reports no use for `seconds`, or has not responded for as long."""
        connection = self._connections.get(container.id)
        if connection is None:
            inspected = await self._engine.container(container.id)
            if inspected is None or not self._containers.in_network(inspected):
                return False
            connection = self._connections[container.id] = self._containers.connect(inspected)
        try:
            idle = await connection.fetch_idle_seconds()
        except SandboxUnavailable:
            return time.monotonic() - self._silent_since.setdefault(container.id, time.monotonic()) >= seconds
        self._silent_since.pop(container.id, None)
        return idle is not None and idle >= seconds

    async def _find_owners(self, objects: Sequence[EngineContainer | EngineVolume]) -> _Owners | None:
        """Return the existing sessions that own `objects`, or None if the store cannot tell: then remove none."""
        candidates = {
            session_id for each in objects for session_id in self._names.candidate_sessions(each.name, each.labels)
        }
        try:
            ids = frozenset(await self._existing(sorted(candidates)) if candidates else ())
        except AnkerError as error:
            log.warning("removing no sandboxes now: the store cannot tell which sessions exist: %s", error)
            return None
        return _Owners(ids, frozenset(self._names.of_session(session_id) for session_id in ids))

    async def _close_connections(self, *, keep: Collection[str]) -> None:
        for container_id in [each for each in self._connections if each not in keep]:
            self._silent_since.pop(container_id, None)
            await self._connections.pop(container_id).close()

    async def _log_failure(self, removal: Awaitable[None]) -> None:
        """Log a failure that concerns one object, so that the others are reviewed nevertheless."""
        try:
            await removal
        except EngineUnavailable:
            raise
        except SandboxUnavailable as error:
            log.warning("the sandbox reaper could not remove everything: %s", error)


def _is_pool_volume(volume: EngineVolume) -> bool:
    return volume.labels.get(ROLE_LABEL) == "pool"


def _is_young(created: datetime) -> bool:
    return (datetime.now(UTC) - created).total_seconds() <= YOUNG_SECONDS
