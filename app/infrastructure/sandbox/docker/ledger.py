"""The engine as the book of who has which sandbox. Nothing is remembered here: every answer is looked up."""

import logging
import secrets
from typing import Literal

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.engine import Engine
from app.infrastructure.sandbox.docker.facts import Container, Volume
from app.infrastructure.sandbox.docker.names import VOLUME, Names
from app.infrastructure.sandbox.docker.spec import Reach, Recipe

log = logging.getLogger(__name__)

Adoption = Literal["adopted", "refused", "lost"]

STOP_SECONDS = 3
"""How long what runs in an idle sandbox may take to put its files in order."""


class Ledger:
    """The containers and volumes of one installation's sessions. A container's name is the lock on its session.

    Raises (every method):
        SandboxUnavailable: the engine is away, or refuses.
    """

    def __init__(self, engine: Engine, names: Names, recipe: Recipe) -> None:
        self._engine = engine
        self._names = names
        self._recipe = recipe

    async def find(self, session_id: str) -> Container | None:
        """The session's container, whatever its state."""
        found = await self._engine.container(self._names.of(session_id))
        if found is not None and not self._names.owns(found.labels):
            raise SandboxUnavailable(
                "A container of this sandbox's name belongs to another installation: set SANDBOX_NAME_PREFIX.",
                retry_after=60,
            )
        return found

    async def create(self, session_id: str, reach: Reach) -> None:
        """Make the session's container on its workspace, old or new. `Taken`: it has got one meanwhile."""
        labels = self._names.labels("sandbox", session=session_id)
        workspace = await self._engine.claim_volume(self._names.of(session_id), labels)
        self._check_owner(workspace)
        config = self._recipe.sandbox(
            token=secrets.token_urlsafe(32),
            volume=workspace.labels.get(VOLUME) or workspace.name,
            labels=labels,
            reach=reach,
        )
        await self._engine.create(self._names.of(session_id), config)

    async def create_waiting(self, name: str, maker: str, reach: Reach) -> None:
        """Make a container that waits for a session, with a workspace of its own."""
        labels = self._names.labels("pool", session="", volume=name, maker=maker)
        config = self._recipe.sandbox(token=secrets.token_urlsafe(32), volume=name, labels=labels, reach=reach)
        await self._engine.create(name, config)

    async def adopt(self, waiting: Container, session_id: str) -> Adoption:
        """Make a waiting container the session's: `adopted`; `refused` where the session has a workspace already.

        `lost`: the container is of no use any more. It is gone, or another process has made the session one.

        The pointer comes first: once it is there, whoever makes the session's container makes it on this workspace.
        Making a volume that exists answers the existing one, so only one of several pointers is ever made.
        """
        name = self._names.of(session_id)
        volume = waiting.labels[VOLUME]
        labels = self._names.labels("sandbox", session=session_id, volume=volume)
        pointer = await self._engine.claim_volume(name, labels)
        if pointer.labels.get(VOLUME) != volume:
            return "refused"
        try:
            await self._engine.rename(waiting.id, name)
        except (failures.Taken, failures.Missing):
            return "lost"
        return "adopted"

    async def remove(self, container: Container) -> None:
        """Remove a container, with time to end in order when it runs. Its workspace stays."""
        if container.runs:
            await self._engine.stop(container.id, grace=STOP_SECONDS)
        await self._engine.remove(container.id)

    async def destroy(self, session_id: str) -> None:
        """Remove all that the session has: container, workspace, pointer. Idempotent."""
        name = self._names.of(session_id)
        if (found := await self.find(session_id)) is not None:
            await self._engine.remove(found.id)
        volume = await self._engine.volume(name)
        if volume is not None and self._names.owns(volume.labels):
            await self.destroy_volume(volume)

    async def destroy_volume(self, volume: Volume) -> None:
        """Remove a session's volume, and first the one that it points to."""
        if target := volume.labels.get(VOLUME):
            await self._engine.remove_volume(target)
        await self._engine.remove_volume(volume.name)

    async def destroy_waiting(self, name: str) -> None:
        """Remove a waiting container with its workspace. Idempotent."""
        await self._engine.remove(name)
        try:
            await self._engine.remove_volume(name)
        except failures.Taken:
            # A session points to it and its container was made by another process: it is that session's now.
            log.info("the workspace of a waiting sandbox has become a session's")

    def _check_owner(self, volume: Volume) -> None:
        if not self._names.owns(volume.labels):
            raise SandboxUnavailable(
                "A volume of this sandbox's name belongs to another installation: set SANDBOX_NAME_PREFIX.",
                retry_after=60,
            )
