"""`SANDBOX_PROVIDER=docker`: every session a container of its own. The engine's objects are the only records."""

import asyncio
import logging
from collections.abc import Mapping

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client import HttpSandbox
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


class DockerSandboxes:
    """`SandboxProvider`: a container and a volume a session, found again by whoever asks the engine next.

    Started with `start` or `async with`. `close` ends what waits in the pool; sessions' sandboxes go on, and end
    themselves when no service comes back for them.
    """

    def __init__(
        self,
        *,
        image: str,
        name_prefix: str,
        network: str,
        installation: str,
        known: Known,
        ttl_minutes: float = 30,
        pool_size: int = 0,
        memory: str = "1g",
        cpus: float = 1,
        egress: Egress = "open",
        sudo: bool = False,
        runtime: str = "",
        exec_seconds: float = 10.0,
        environment: Mapping[str, str] | None = None,
        reap_seconds: float = REAP_SECONDS,
        starts_at_once: int = STARTS_AT_ONCE,
    ) -> None:
        """The arguments are the settings of the same names.

        `installation` names all processes that share one store, and nobody else; `known` answers the ids of all
        sessions that exist, or raises an `AnkerError`; `environment` says where the engine is (`DOCKER_HOST`): this
        process's when None.

        Raises:
            ValueError: `memory` is no size.
        """
        self._image = image
        self._names = Names(name_prefix, installation)
        self._engine = Engine(environment)
        recipe = Recipe(
            image=image,
            network=network,
            memory=parse_size(memory),
            cpus=cpus,
            sudo=sudo,
            runtime=runtime,
            ttl_seconds=ttl_minutes * 60,
            exec_seconds=exec_seconds,
        )
        bridge = SandboxNetwork(self._engine, self._names, name=network, egress=str(egress))
        self._guard = Guard(self._engine, self._names, recipe, bridge, egress)
        ledger = Ledger(self._engine, self._names, recipe)
        launcher = Launcher(
            self._engine, self._guard, network=network, exec_seconds=exec_seconds, starts_at_once=starts_at_once
        )
        self._pool = Pool(self._names, ledger, self._guard, launcher, size=pool_size)
        self._site = Site(engine=self._engine, ledger=ledger, guard=self._guard, launcher=launcher, pool=self._pool)
        self._slots: dict[str, Slot] = {}
        self._reaper = Reaper(
            engine=self._engine,
            names=self._names,
            ledger=ledger,
            launcher=launcher,
            guard=self._guard,
            pool=self._pool,
            slots=self._slots,
            network=network,
            known=known,
            ttl_seconds=ttl_minutes * 60,
        )
        self._reap_seconds = reap_seconds
        self._reaping: asyncio.Task[None] | None = None
        self._round = asyncio.Lock()
        self._removals: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Begin to set up the network, to clear up and to fill the pool, all in the background; never raises.

        Whether the engine is there shows at `check`, and at the first sandbox: it may be started later.
        """
        self._reaping = asyncio.create_task(self._reap_forever(), name="sandbox reaper")
        self._pool.start()

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
            await self._guard.refresh()
        except SandboxUnavailable as error:
            log.warning("the sandboxes' network is not guarded now: %s", error)
        await self._reaper.round()
        for name in [name for name, slot in self._slots.items() if slot.empty]:
            del self._slots[name]
        await self._pool.tend()

    async def check(self) -> str | None:
        """Why no sandbox could be started now; None when one could."""
        try:
            await self._engine.ping()
            if not await self._engine.has_image(self._image):
                return failures.NO_IMAGE
            async with asyncio.timeout(CHECK_SECONDS):
                await self._guard.ensure()
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
                await self._pool.close()
        except TimeoutError:
            log.warning("the Docker engine is slow: some waiting sandboxes were left to end themselves")
        await self._guard.close()
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
