"""`SANDBOX_PROVIDER=local`: each session's sandbox is a child process of the service, without isolation."""

import asyncio
import logging
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from app.application import context
from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.external.telemetry import NO_SANDBOX_OBSERVER, SandboxObserver
from app.infrastructure.fair_slots import FairSlots
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.running_sandbox import RunningSandbox
from app.infrastructure.sandbox.client.shell_ids import encode_scope
from app.infrastructure.sandbox.lifecycle import SessionSandbox, SessionSandboxProvider
from app.infrastructure.sandbox.local.process import REPOSITORY, ProcessMarks, SandboxProcess, kill_process_trees
from app.infrastructure.sandbox.local.session_folders import SessionFolder, SessionFolders

log = logging.getLogger(__name__)

STARTS_AT_ONCE = 4
"""Maximum number of sandboxes that start at the same time: a start takes half a second of CPU."""

REAP_SECONDS = 60.0
"""Interval in seconds between two searches for idle sandboxes."""

START_SECONDS = 30.0
"""Time limit in seconds from the start of a process to its first response, while several start."""

IDLE_CHECK_SECONDS = 2.0
"""Time limit in seconds for a sandbox to report when it was last used."""

END_SECONDS = 1.0
"""Time limit in seconds for a process that has closed its connections to end."""

CHROMIUM_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
"""The names under which a sandbox looks for a browser."""


class LocalSandbox(RunningSandbox):
    """A sandbox whose process is a child of this one."""

    def __init__(self, process: SandboxProcess, folder: SessionFolder, *, exec_seconds: float) -> None:
        super().__init__(
            SandboxApiClient(process.address, process.token),
            instance_id=f"{process.pid}-{secrets.token_hex(4)}",  # process ids are reused
            home=os.path.realpath(folder.workspace),
            exec_seconds=exec_seconds,
        )
        self.process = process

    async def close(self) -> None:
        """End the process and all that it started, and close the connection. Idempotent."""
        try:
            await self.process.stop()
        finally:
            await super().close()

    async def is_idle(self, ttl_seconds: float) -> bool:
        """Return whether nobody has used the sandbox for `ttl_seconds`.

        Only the uses by this process count if the sandbox does not report the others.
        """
        if self.idle_seconds < ttl_seconds:
            return False
        try:
            reported = await self.fetch_idle_seconds(IDLE_CHECK_SECONDS)
        except SandboxUnavailable:
            reported = None
        # Check again: a call may have begun meanwhile.
        return self.idle_seconds >= ttl_seconds and (reported is None or reported >= ttl_seconds)


class LocalBackend:
    """`SandboxBackend` with child processes and folders."""

    def __init__(self, root: Path, *, environment: Mapping[str, str], exec_seconds: float) -> None:
        self.folders = SessionFolders(root)
        self.marks = ProcessMarks(root)
        self._environment = environment
        self._exec_seconds = exec_seconds
        self._start_slots = FairSlots(STARTS_AT_ONCE)

    async def is_alive(self, known: LocalSandbox) -> bool:
        """Return whether the process runs."""
        return known.process.is_running

    async def find_end(self, known: LocalSandbox) -> str | None:
        """Return how the process ended. It closes its connections a moment before it ends."""
        status = await known.process.wait_for_end(END_SECONDS)
        return None if status is None else f"ended with status {status}"

    async def find(self, session_id: str, known: LocalSandbox | None) -> LocalSandbox | None:
        """Return `known` if its process runs; clean up after one that has ended by itself."""
        if known is None or known.process.is_running:
            return known
        log.warning("the sandbox of session %s has ended by itself", session_id)
        await self._kill_marked(session_id)
        return None

    async def start(self, session_id: str, known: LocalSandbox | None) -> LocalSandbox:
        """Return the session's running process, or start one and wait until it responds.

        Raises:
            SandboxUnavailable: The process does not start.
        """
        if (running := await self.find(session_id, known)) is not None:
            running.touch()
            return running
        folder = self.folders.of(session_id)
        async with self._start_slots.slot(context.current_owner()):
            try:
                await asyncio.to_thread(folder.make)
            except OSError as error:
                raise SandboxUnavailable(f"No folder for the sandbox could be made: {error.strerror}.") from error
            return await self._start_process(session_id, folder)

    async def stop(self, session_id: str, instance_id: str) -> None:
        """End the processes that the sandbox has lost track of; it has ended itself with its connection."""
        await self._kill_marked(session_id)

    async def destroy(self, session_id: str) -> None:
        """End the session's processes and delete its folder."""
        folder = self.folders.of(session_id)
        if not await asyncio.to_thread(folder.path.exists):
            return  # no process was ever started
        await self._kill_marked(session_id)
        if not await asyncio.to_thread(self.folders.remove, folder):
            log.warning("not all files of session %s could be deleted", session_id)

    async def _start_process(self, session_id: str, folder: SessionFolder) -> LocalSandbox:
        process = await SandboxProcess.spawn(
            folder, mark=self.marks.mark(session_id), source=self._environment, exec_seconds=self._exec_seconds
        )
        running = LocalSandbox(process, folder, exec_seconds=self._exec_seconds)
        try:
            await running.api.get("status", seconds=START_SECONDS)
        except (SandboxUnavailable, SandboxFailure) as error:
            await running.close()
            status, output = await process.stop(), await process.output_tail()
            # The output may contain paths: it is for the log only.
            log.error(
                "session %s: %s The sandbox ended with status %d; its output:\n%s", session_id, error, status, output
            )
            raise SandboxUnavailable("The session's sandbox did not start; the service's log says why.") from error
        except BaseException:
            await running.close()
            raise
        return running

    async def _kill_marked(self, session_id: str) -> None:
        await asyncio.to_thread(self.marks.kill, {session_id})


class LocalSandboxes(SessionSandboxProvider[LocalSandbox]):
    """`SandboxProvider` with one child process for each session, for a service that is a single process.

    The workspaces are `<data_dir>/sandboxes/<session>/workspace` and outlive the service. Its sandboxes end with
    `close`, or by themselves when the service is killed; processes that are left over even so end with the next
    `start`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        ttl_minutes: float = 30,
        environment: Mapping[str, str] | None = None,
        exec_seconds: float = 10.0,
        reap_seconds: float = REAP_SECONDS,
        observer: SandboxObserver = NO_SANDBOX_OBSERVER,
    ) -> None:
        """Initialize the provider; `start` it, or use it as a context manager.

        Args:
            data_dir: The folder for the sessions' files; no other process uses it.
            ttl_minutes: Idle time in minutes after which a sandbox is stopped.
            environment: The environment that sandboxes take some variables from; None: this process's.
            exec_seconds: The sandboxes' SANDBOX_EXEC_SECONDS.
            reap_seconds: Interval in seconds between two searches for idle sandboxes.
            observer: Is told of starts and removals.
        """
        environment = os.environ if environment is None else environment
        backend = LocalBackend(data_dir.absolute() / "sandboxes", environment=environment, exec_seconds=exec_seconds)
        super().__init__(backend, key=encode_scope, observer=observer)
        self._folders = backend.folders
        self._marks = backend.marks
        self._ttl_seconds = ttl_minutes * 60
        self._reap_seconds = reap_seconds

    async def start(self) -> None:
        """End what a killed service has left over, complete its deletions, and start the reaper.

        Raises:
            OSError: The data folder cannot be written to.
        """
        if left_over := await asyncio.to_thread(self._clean_up):
            log.warning("ended %d processes that an earlier service had left over", left_over)
        self.start_reaper(self._reap_seconds)

    async def sweep(self, known: Collection[str]) -> int:
        """Delete the folders of sessions that are neither in `known` nor in use; return how many."""
        kept = {encode_scope(session_id) for session_id in known}.union(self.sessions)
        strays = [name for name in await asyncio.to_thread(self._folders.names) if name not in kept]
        for name in strays:
            await asyncio.to_thread(self._folders.remove, SessionFolder(self._folders.root / name))
        return len(strays)

    async def reap(self) -> None:
        """Stop idle sandboxes, and clean up after those that have ended by themselves."""
        stopped = sum(await asyncio.gather(*(self._stop_if_over(session) for session in self.sessions.values())))
        if stopped:
            log.info("stopped %d idle or ended sandboxes", stopped)
        self.drop_empty_sessions()

    async def check(self) -> str | None:
        """Return why no sandbox can be started now; None if one can."""
        if shutil.which("bash") is None:
            return "There is no bash on this machine."
        if not (REPOSITORY / "sandbox" / "__main__.py").is_file():
            return "The sandbox service's code is not beside the service's."
        if os.pathsep in str(self._folders.root):
            return f"DATA_DIR must not hold {os.pathsep!r}."
        if not await asyncio.to_thread(self._folders.is_writable):
            return "DATA_DIR cannot be written to."
        return None

    async def close(self) -> None:
        """Kill all sandboxes at once; workspaces stay. Idempotent."""
        self.is_closed = True
        session_ids = {session.session_id for session in self.sessions.values()}
        running = [session.running for session in self.sessions.values() if session.running is not None]
        # Together: each one alone would search its descendants among the processes of all others.
        await asyncio.to_thread(kill_process_trees, {each.process.pid for each in running if each.process.is_running})
        await super().close()
        if session_ids:
            await asyncio.to_thread(self._marks.kill, session_ids)

    def _clean_up(self) -> int:
        self._folders.make_root()
        killed = self._marks.kill(self._marks.session_ids())
        self._folders.empty_trash()
        return killed

    async def _stop_if_over(self, session: SessionSandbox[LocalSandbox]) -> bool:
        running = session.running
        if running is None:
            return False

        async def is_over() -> bool:
            if session.running is not running:
                return False  # replaced while waiting for the lock
            return not running.process.is_running or await running.is_idle(self._ttl_seconds)

        reason = "idle" if running.process.is_running else "ended"
        stopped = await is_over() and await session.stop_if_idle(running.instance_id, is_over)
        if stopped:
            self._observer.reaped(reason)
        return stopped


def has_chromium() -> bool:
    """Return whether a local sandbox finds a browser."""
    return any(shutil.which(name) for name in CHROMIUM_PROGRAMS)
