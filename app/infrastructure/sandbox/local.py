"""Sandboxes as processes on this machine: no isolation, no Docker; for the demo, and for those who ask for it."""

import asyncio
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.claims import Claims
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.client.shell_ids import encode_scope
from app.infrastructure.sandbox.ledger import Ledger, kill_families
from app.infrastructure.sandbox.left_over import clear_up, remove_strays
from app.infrastructure.sandbox.process import REPOSITORY
from app.infrastructure.sandbox.site import Site
from app.infrastructure.sandbox.slot import Slot
from app.infrastructure.sandbox.workspace import Places

log = logging.getLogger(__name__)

STARTS_AT_ONCE = 4
REAP_SECONDS = 60.0


class LocalSandboxes:
    """`SandboxProvider`: one child process a session, its workspace below `<data_dir>/sandboxes/<session>/workspace`.

    Several processes of the service on this machine may share `data_dir`: a session's sandbox is the child of the one
    that was first asked for it, and the others use it too. Started with `start` or `async with`; `close` ends this
    process's children and keeps the workspaces. If this process is killed, each of its sandboxes ends itself (its
    lifeline breaks), and whoever needs the session next, or starts next, ends whatever may still be left.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        ttl_minutes: float = 30,
        environment: Mapping[str, str] | None = None,
        exec_seconds: float = 10.0,
        reap_seconds: float = REAP_SECONDS,
        starts_at_once: int = STARTS_AT_ONCE,
    ) -> None:
        """`environment` is what a sandbox's own, clean one is picked from: this process's when None."""
        root = data_dir.absolute() / "sandboxes"
        self._places = Places(root)
        self._ledger = Ledger(root)
        self._claims = Claims(root)
        self._site = Site(
            places=self._places,
            ledger=self._ledger,
            claims=self._claims,
            gate=asyncio.Semaphore(starts_at_once),
            environment=os.environ if environment is None else environment,
            exec_seconds=exec_seconds,
        )
        self._ttl_seconds = ttl_minutes * 60
        self._reap_seconds = reap_seconds
        self._slots: dict[str, Slot] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Clear up after services that were killed, and watch for idle sandboxes from now on.

        Raises:
            OSError: the data folder cannot be written to.
        """
        left_over = await asyncio.to_thread(clear_up, self._claims, self._ledger, self._places)
        if left_over:
            log.warning("ended %d processes that an earlier service had left behind", left_over)
        self._reaper = asyncio.create_task(self._reap_forever(), name="sandbox reaper")

    async def __aenter__(self) -> "LocalSandboxes":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def warm(self, session_id: str) -> None:
        """Begin to start the session's sandbox in the background; a failure is logged and shows at `acquire`."""
        if not self._closed and (slot := self._slot(session_id)).sandbox is None:
            slot.begin()

    async def acquire(self, session_id: str) -> HttpSandbox:
        """The session's sandbox, ready; the same one for all who ask at once.

        Raises:
            SandboxUnavailable: it does not start, was destroyed meanwhile, or this provider is closed.
        """
        if self._closed:
            raise SandboxUnavailable("The service is shutting down.")
        return await self._slot(session_id).acquire()

    async def find(self, session_id: str) -> HttpSandbox | None:
        """The session's sandbox if its process runs, be it another process's child."""
        if self._closed:
            return None
        slot = self._slot(session_id)
        sandbox = await slot.find()
        self._forget_if_empty(slot)
        return sandbox

    async def destroy(self, session_id: str) -> None:
        """End the session's processes and delete its files; goes on to its end even when the caller is cancelled."""
        removal = asyncio.create_task(self._destroy(session_id), name=f"sandbox removal {session_id}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)

    async def sweep(self, known: Collection[str]) -> int:
        """Delete the folders of sessions that are not in `known` and have no sandbox; answers how many."""
        kept = {encode_scope(session_id) for session_id in (*known, *self._slots)}
        strays = [name for name in await asyncio.to_thread(self._places.names) if name not in kept]
        return await asyncio.to_thread(remove_strays, strays, self._claims, self._ledger, self._places)

    async def expire(self) -> int:
        """End the processes that were idle for too long, and clear up after those that died; answers how many."""
        rested = await asyncio.gather(
            *(slot.rest(idle_for=self._ttl_seconds) for slot in self._slots.values() if self._is_over(slot))
        )
        await asyncio.to_thread(self._claims.tidy)
        for slot in list(self._slots.values()):
            self._forget_if_empty(slot)
        return sum(rested)

    async def check(self) -> str | None:
        """Why no sandbox could be started now; None when one could."""
        if shutil.which("bash") is None:
            return "There is no bash on this machine."
        if not (REPOSITORY / "sandbox" / "__main__.py").is_file():
            return "The sandbox service's code is not beside the service's."
        if os.pathsep in str(self._places.root):
            return f"DATA_DIR must not hold {os.pathsep!r}."
        if not await asyncio.to_thread(_writable, self._places.root):
            return "DATA_DIR cannot be written to."
        return None

    async def close(self) -> None:
        """End every process of ours at once, without manners. Workspaces stay. Idempotent."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait({self._reaper})
            self._reaper = None
        slots = list(self._slots.values())
        await asyncio.gather(*(slot.leave() for slot in slots))
        # Asked one by one, each would look for its children among the processes of all the others.
        await asyncio.to_thread(kill_families, {slot.pid for slot in slots if slot.pid is not None})
        await asyncio.gather(*(slot.end() for slot in slots), *self._removals)
        if ours := {slot.session_id for slot in slots if slot.ours}:
            await asyncio.to_thread(self._ledger.kill, ours)
        await asyncio.gather(*(slot.release() for slot in slots))
        self._slots.clear()

    async def _destroy(self, session_id: str) -> None:
        slot = self._slot(session_id)
        await slot.destroy()
        self._forget_if_empty(slot)

    def _forget_if_empty(self, slot: Slot) -> None:
        if slot.empty and self._slots.get(slot.session_id) is slot:
            del self._slots[slot.session_id]

    async def _reap_forever(self) -> None:
        while True:
            await asyncio.sleep(self._reap_seconds)
            try:
                if ended := await self.expire():
                    log.info("ended %d idle sandboxes", ended)
            except OSError:
                log.exception("idle sandboxes are not looked after now")

    def _is_over(self, slot: Slot) -> bool:
        return slot.died or slot.idle_seconds >= self._ttl_seconds

    def _slot(self, session_id: str) -> Slot:
        slot = self._slots.get(session_id)
        if slot is None:
            slot = self._slots[session_id] = Slot(session_id, self._site)
        return slot


def _writable(root: Path) -> bool:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(root, os.W_OK | os.X_OK)
