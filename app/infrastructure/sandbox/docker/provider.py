"""`SANDBOX_PROVIDER=docker`: every session a container of its own. The engine's objects are the only records."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.egress import Egress
from app.infrastructure.sandbox.docker.engine import Engine
from app.infrastructure.sandbox.docker.guard import Guard
from app.infrastructure.sandbox.docker.launch import Launcher
from app.infrastructure.sandbox.docker.ledger import Ledger
from app.infrastructure.sandbox.docker.names import Names
from app.infrastructure.sandbox.docker.network import SandboxNetwork
from app.infrastructure.sandbox.docker.pool import Pool
from app.infrastructure.sandbox.docker.reaper import Known, Reaper
from app.infrastructure.sandbox.docker.slot import Site, Slot
from app.infrastructure.sandbox.docker.spec import Recipe, parse_size

log = logging.getLogger(__name__)

STARTS_AT_ONCE = 4
REAP_SECONDS = 60.0
CLOSE_SECONDS = 8.0
CHECK_SECONDS = 8.0
ENTER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerOptions:
    """What an operator decides about sandboxes: the settings of the same names."""

    image: str
    name_prefix: str
    network: str
    ttl_minutes: float = 30
    pool_size: int = 0
    memory: str = "1g"
    cpus: float = 1
    egress: Egress = "open"
    sudo: bool = False
    runtime: str = ""
    exec_seconds: float = 10.0

    def recipe(self) -> Recipe:
        """How a container is made.

        Raises:
            ValueError: `memory` is no size.
        """
        return Recipe(
            image=self.image,
            network=self.network,
            memory=parse_size(self.memory),
            cpus=self.cpus,
            sudo=self.sudo,
            runtime=self.runtime,
            ttl_seconds=self.ttl_minutes * 60,
            exec_seconds=self.exec_seconds,
        )


class DockerSandboxes:
    """`SandboxProvider`: a container and a volume a session, found again by whoever asks the engine next.

    Started with `start` or `async with`. `close` ends what waits in the pool; sessions' sandboxes go on, and end
    themselves when no service comes back for them.
    """

    def __init__(
        self,
        options: DockerOptions,
        *,
        installation: str,
        known: Known,
        environment: Mapping[str, str] | None = None,
        reap_seconds: float = REAP_SECONDS,
        starts_at_once: int = STARTS_AT_ONCE,
    ) -> None:
        """`installation` names all processes that share one store, and nobody else; `known` answers which of
        some sessions exist, or raises an `AnkerError`; `environment` says where the engine is (`DOCKER_HOST`): this
        process's when None.

        Raises:
            ValueError: `options.memory` is no size.
        """
        self._image = options.image
        self._names = names = Names(options.name_prefix, installation)
        self._engine = engine = Engine(environment)
        self._site = site = _site(engine, names, options, starts_at_once)
        self._slots: dict[str, Slot] = {}
        self._reaper = Reaper(
            site, names, self._slots, network=options.network, known=known, ttl_seconds=options.ttl_minutes * 60
        )
        self._reap_seconds = reap_seconds
        self._reaping: asyncio.Task[None] | None = None
        self._round = asyncio.Lock()
        self._removals: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Begin to set up the network, to clear up and to fill the pool, all in the background; never raises.

        Whether the engine is there shows at `check`, and at the first sandbox: it may be started later. A service that
        is itself a container enters the network first: an engine may move the ports that it publishes to that network,
        which cuts what is connected to them.
        """
        try:
            async with asyncio.timeout(ENTER_SECONDS):
                await self._site.guard.enter()
        except (TimeoutError, SandboxUnavailable) as error:
            log.warning("the sandboxes' network cannot be entered yet: %s", error)
        self._reaping = asyncio.create_task(self._reap_forever(), name="sandbox reaper")
        self._site.pool.start()

    async def __aenter__(self) -> "DockerSandboxes":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def warm(self, session_id: str) -> None:
        """Begin to start the session's sandbox in the background; a failure is logged and shows at `acquire`."""
        if not self._closed:
            self._slot(session_id).begin()

    async def acquire(self, session_id: str) -> HttpSandbox:
        """The session's sandbox, ready; the same one for all who ask at once, in whichever process.

        Raises:
            SandboxUnavailable: none can be had, it was destroyed meanwhile, or this provider is closed.
        """
        if self._closed:
            raise SandboxUnavailable("The service is shutting down.")
        return await self._slot(session_id).acquire()

    async def find(self, session_id: str) -> HttpSandbox | None:
        """The session's sandbox if its container runs.

        Raises:
            SandboxUnavailable: the engine does not tell.
        """
        return None if self._closed else await self._slot(session_id).find()

    async def destroy(self, session_id: str) -> None:
        """End the session's sandbox and delete its files; goes on to its end even when the caller is cancelled.

        What the engine does not do now, because it is away, the reaper does later.
        """
        removal = asyncio.create_task(self._destroy(session_id), name=f"sandbox removal {session_id}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)

    async def reap(self) -> None:
        """One round of looking after everything, now.

        Raises:
            SandboxUnavailable: the engine is away.
        """
        async with self._round:
            await self._reaped()

    async def _reaped(self) -> None:
        try:
            await self._site.guard.refresh()
        except SandboxUnavailable as error:
            log.warning("the sandboxes' network is not guarded now: %s", error)
        await self._reaper.round()
        for name in [name for name, slot in self._slots.items() if slot.empty]:
            del self._slots[name]
        await self._site.pool.tend()

    async def check(self) -> str | None:
        """Why no sandbox could be started now; None when one could."""
        try:
            await self._engine.ping()
            if not await self._engine.has_image(self._image):
                return failures.NO_IMAGE
            async with asyncio.timeout(CHECK_SECONDS):
                await self._site.guard.ensure()
        except TimeoutError:
            return "The Docker engine takes long to set up the sandboxes' network."
        except SandboxUnavailable as error:
            return str(error)
        return None

    async def close(self) -> None:
        """End the pool, and whatever is under way; sessions' sandboxes go on. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._reaping is not None:
            self._reaping.cancel()
            await asyncio.wait({self._reaping})
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(slot.end() for slot in self._slots.values()), *self._removals)
                await self._site.pool.close()
        except TimeoutError:
            log.warning("the Docker engine is slow: some waiting sandboxes were left to end themselves")
        await self._site.guard.close()
        await self._reaper.close()
        self._slots.clear()
        self._engine.close()

    async def _destroy(self, session_id: str) -> None:
        slot = self._slot(session_id)
        try:
            await slot.destroy()
        except SandboxUnavailable as error:
            log.warning("the sandbox of session %s will be removed later: %s", session_id, error)
        name = self._names.of(session_id)
        if slot.empty and self._slots.get(name) is slot:
            del self._slots[name]

    async def _reap_forever(self) -> None:
        while True:
            try:
                await self.reap()
            except SandboxUnavailable as error:
                log.warning("sandboxes are not looked after now: %s", error)
            except Exception:
                log.exception("the sandbox reaper has stumbled")
            await asyncio.sleep(self._reap_seconds)

    def _slot(self, session_id: str) -> Slot:
        name = self._names.of(session_id)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = Slot(session_id, name, self._site)
        return slot


def _site(engine: Engine, names: Names, options: DockerOptions, starts_at_once: int) -> Site:
    """The parts that all slots share."""
    recipe, network = options.recipe(), options.network
    bridge = SandboxNetwork(engine, names, name=network, egress=str(options.egress))
    guard = Guard(engine, names, recipe, bridge, options.egress)
    ledger = Ledger(engine, names, recipe)
    launcher = Launcher(
        engine, guard, network=network, exec_seconds=options.exec_seconds, starts_at_once=starts_at_once
    )
    pool = Pool(names, ledger, guard, launcher, size=options.pool_size)
    return Site(engine=engine, ledger=ledger, guard=guard, launcher=launcher, pool=pool)
