"""Looks through all that carries this installation's label, and removes what belongs to nobody or has had its time.

What other installations or other people have made is not even looked at.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from app.domain.errors import AnkerError, SandboxUnavailable
from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.facts import Container, Volume
from app.infrastructure.sandbox.docker.life import Life
from app.infrastructure.sandbox.docker.names import MAKER, ROLE, SESSION, VOLUME, Names, is_waiting
from app.infrastructure.sandbox.docker.slot import Site, Slot

log = logging.getLogger(__name__)

YOUNG_SECONDS = 120.0
"""Somebody may still be busy with what is younger."""
ABANDONED_SECONDS = 180.0
"""A waiting sandbox is told every minute that it is wanted; one that heard nothing for so long has lost its maker."""
LOOKS_AT_ONCE = 8

Known = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Those of some ids of sessions that there is a session for."""


@dataclass(frozen=True, slots=True)
class _Sessions:
    """The sessions that exist, of those that something is there of; `names` are those of their containers."""

    ids: frozenset[str]
    names: frozenset[str]

    def has(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether an object of this name and with these labels is one of theirs."""
        return name in self.names or labels.get(SESSION) in self.ids


class Reaper:
    """Removes containers, volumes and networks of this installation, one round at a time."""

    def __init__(
        self,
        site: Site,
        names: Names,
        slots: Mapping[str, Slot],
        *,
        network: str,
        known: Known,
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slots` are this process's, by the container's name."""
        self._engine = site.engine
        self._ledger = site.ledger
        self._launcher = site.launcher
        self._guard = site.guard
        self._pool = site.pool
        self._names = names
        self._slots = slots
        self._network = network
        self._known = known
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._probes: dict[str, Life] = {}
        self._silent: dict[str, float] = {}

    async def round(self) -> None:
        """Look through everything once.

        Raises:
            SandboxUnavailable: the engine is away; what is left is seen to by the next round.
        """
        containers = await self._engine.containers(self._names.mine)
        volumes = await self._engine.volumes(self._names.mine)
        # Asked last: a session that has one of these and still exists is among them.
        sessions = await self._sessions([*containers, *volumes])
        await self._forget({container.id for container in containers})
        at_once = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def look(container: Container) -> None:
            async with at_once:
                await self._tolerantly(self._see_to(container, sessions))

        await asyncio.gather(*(look(container) for container in containers))
        for volume in _pointers_first(volumes):
            await self._tolerantly(self._see_to_volume(volume, volumes, containers, sessions))
        await self._see_to_networks()

    async def close(self) -> None:
        """Close what was opened to look."""
        await self._forget(())

    async def _see_to(self, container: Container, sessions: _Sessions | None) -> None:
        if container.labels.get(ROLE) == "guard":
            if _age(container.created) > YOUNG_SECONDS:
                await self._engine.remove(container.id)
        elif is_waiting(container.name, container.labels):
            await self._see_to_waiting(container)
        elif sessions is not None and not sessions.has(container.name, container.labels):
            log.info("removing the sandbox of a session that is no more: %s", container.name)
            slot = self._slots.get(container.name)
            await (slot.destroy() if slot else self._engine.remove(container.id))
        elif container.runs:
            await self._see_to_idle(container)
        elif container.ended or (container.state == "created" and _age(container.created) > YOUNG_SECONDS):
            await self._bury(container)

    async def _see_to_waiting(self, container: Container) -> None:
        if container.id in self._pool.made:
            return
        young = _age(container.created) < YOUNG_SECONDS
        if container.labels.get(MAKER) != self._pool.maker:
            # Another process of this installation may wait with it; then it is not silent for long.
            if container.runs and not await self._is_idle(container, ABANDONED_SECONDS):
                return
            young = young and not container.ended
        if not young:
            log.info("removing a waiting sandbox that nobody waits with any more: %s", container.name)
            await self._ledger.destroy_waiting(container.name)

    async def _see_to_idle(self, container: Container) -> None:
        async def still() -> bool:
            return await self._is_idle(container, self._ttl_seconds)

        if not await still():
            return
        slot = self._slots.get(container.name)
        if slot is None:
            await self._ledger.remove(container)
        elif not await slot.rest(container, still=still):
            return
        log.info("ended an idle sandbox, its files stay: %s", container.name)

    async def _bury(self, container: Container) -> None:
        log.info("removing a sandbox that has ended, its files stay: %s", container.name)
        if (slot := self._slots.get(container.name)) is not None:
            if slot.container_id != container.id:
                return  # a new one is being made in its place
            await slot.forget()
        await self._engine.remove(container.id)
        # It may have ended because the engine was started anew.
        self._guard.doubt()

    async def _see_to_volume(
        self, volume: Volume, volumes: list[Volume], containers: list[Container], sessions: _Sessions | None
    ) -> None:
        if volume.labels.get(ROLE) == "pool":
            wanted = {each.labels.get(VOLUME) for each in volumes} | {
                name for each in containers for name in each.volumes
            }
            if volume.name in wanted or _age(volume.created) < YOUNG_SECONDS:
                return
        elif sessions is None or sessions.has(volume.name, volume.labels):
            return
        log.info("removing the files of a session that is no more: %s", volume.name)
        await self._ledger.destroy_volume(volume)

    async def _see_to_networks(self) -> None:
        for listed in await self._engine.networks(self._names.mine):
            if listed.name == self._network:
                continue
            network = await self._engine.network(listed.id)
            if network is not None and not network.members:
                log.info("removing a network that is not used any more: %s", network.name)
                await self._tolerantly(self._engine.remove_network(network.id))
                await self._guard.retire(network.name)

    async def _is_idle(self, container: Container, seconds: float) -> bool:
        """Whether nobody has used it for `seconds`, as it says itself; one that says nothing is idle while it does."""
        probe = self._probes.get(container.id)
        if probe is None:
            whole = await self._engine.container(container.id)
            if whole is None or not whole.address(self._network):
                return False
            probe = self._probes[container.id] = self._launcher.attach(whole)
        try:
            idle = await probe.idle_seconds()
        except SandboxUnavailable:
            return self._clock() - self._silent.setdefault(container.id, self._clock()) >= seconds
        self._silent.pop(container.id, None)
        return idle is not None and idle >= seconds

    async def _sessions(self, objects: Sequence[Container | Volume]) -> _Sessions | None:
        """Those sessions of the objects that exist; None when that cannot be known, and none may be taken for gone."""
        asked = {session_id for each in objects for session_id in self._names.sessions(each.name, each.labels)}
        try:
            ids = frozenset(await self._known(sorted(asked)) if asked else ())
        except AnkerError as error:
            log.warning("which sessions exist is not known, so no sandbox is removed for want of one: %s", error)
            return None
        return _Sessions(ids, frozenset(self._names.of(session_id) for session_id in ids))

    async def _forget(self, kept: Collection[str]) -> None:
        for container_id in [each for each in self._probes if each not in kept]:
            self._silent.pop(container_id, None)
            await self._probes.pop(container_id).close()

    async def _tolerantly(self, removal: Awaitable[None]) -> None:
        """One thing that cannot be removed now must not keep the others."""
        try:
            await removal
        except failures.EngineAway:
            raise
        except SandboxUnavailable as error:
            log.warning("not everything could be cleared up: %s", error)


def _age(created: datetime) -> float:
    return (datetime.now(UTC) - created).total_seconds()


def _pointers_first(volumes: list[Volume]) -> list[Volume]:
    """Those that others depend on come last."""
    return sorted(volumes, key=lambda volume: volume.labels.get(ROLE) == "pool")
