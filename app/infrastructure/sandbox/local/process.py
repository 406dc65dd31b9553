"""The processes of local sandboxes: how they are started, recognized and ended."""

import asyncio
import hashlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.local.privacy import clean_environment, temporary_folder
from app.infrastructure.sandbox.local.session_folders import SessionFolder

REPOSITORY = Path(__file__).resolve().parents[4]
"""The folder that holds the package `sandbox`."""

HOME_ALIAS = "/home/ubuntu"
"""The workspace of a container. The file API maps it to the workspace, because the model may know it."""

MARK_VARIABLE = "ANKER_SANDBOX"
"""The environment variable with the mark that every process of a sandbox inherits."""

BACKLOG = 128
"""Maximum number of connections that wait to be accepted by a sandbox."""

GRACE_SECONDS = 1.5
"""Time limit in seconds for a sandbox to end its shells and itself; it usually needs less than a second."""

OUTPUT_TAIL_BYTES = 4096
"""Number of bytes of a sandbox's output that are kept for the log."""

KILL_ROUNDS = 50
"""Maximum number of rounds in which marked processes are searched and killed."""

KILL_PAUSE_SECONDS = 0.02
"""Pause in seconds between two such rounds."""

QUIET_ROUNDS = 2
"""Number of consecutive rounds without a marked process after which none is left."""


class SandboxProcess:
    """A running `python -m sandbox`. It ends with `stop`, or with this process, and so does all that it started."""

    def __init__(self, child: asyncio.subprocess.Process, *, address: str, token: str, lifeline: int) -> None:
        """Take over `child` and `lifeline`, the write end of the pipe whose closing ends the child."""
        self.address = address
        self.token = token
        self._child = child
        self._lifeline = lifeline
        self._tail = bytearray()
        self._reader = asyncio.create_task(self._keep_tail())

    @classmethod
    async def spawn(
        cls, folder: SessionFolder, *, mark: str, source: Mapping[str, str], exec_seconds: float
    ) -> "SandboxProcess":
        """Start a sandbox for `folder`.

        Its socket listens already, so requests wait until it is ready; if it ends at start, they fail.

        Args:
            folder: The session's folder, which exists.
            mark: The value of `MARK_VARIABLE`.
            source: The environment that the sandbox's clean environment is built from.
            exec_seconds: The sandbox's SANDBOX_EXEC_SECONDS.

        Raises:
            SandboxUnavailable: The process cannot be started.
        """
        token = secrets.token_urlsafe(32)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(BACKLOG)
            port: int = listener.getsockname()[1]
            read_end, write_end = os.pipe()
            try:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "sandbox"),
                    cwd=REPOSITORY,
                    env={
                        **clean_environment(source, folder.workspace),
                        **_settings(folder, exec_seconds),
                        MARK_VARIABLE: mark,
                        "SANDBOX_TOKEN": token,
                        "SANDBOX_FD": str(listener.fileno()),
                        "SANDBOX_LIFELINE_FD": str(read_end),
                    },
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(listener.fileno(), read_end),
                    start_new_session=True,
                )
            except OSError as error:
                os.close(write_end)
                raise SandboxUnavailable(f"No sandbox could be started: {error.strerror}.") from error
            except BaseException:
                os.close(write_end)  # ends the child if it was started
                raise
            finally:
                os.close(read_end)
        return cls(child, address=f"http://127.0.0.1:{port}", token=token, lifeline=write_end)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the process group."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is not known to have ended."""
        return self._child.returncode is None

    async def wait_for_end(self, seconds: float) -> int | None:
        """Return the exit status; None if the process still runs after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._child.wait()
        except TimeoutError:
            return None

    async def stop(self) -> int:
        """End the process and all that it started; return its exit status. Idempotent."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            if self.is_running:
                self._signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(GRACE_SECONDS):
                        await self._child.wait()
                except TimeoutError:
                    # It hangs. Its descendants can only be found while it lives.
                    await asyncio.to_thread(kill_process_trees, {self.pid})
                    self._signal(signal.SIGKILL)
            return await self._child.wait()
        finally:
            if self.is_running:  # cancelled
                self._signal(signal.SIGKILL)
            self._reader.cancel()

    async def output_tail(self) -> str:
        """Return the end of what an ended process wrote, at most `OUTPUT_TAIL_BYTES`."""
        await asyncio.wait({self._reader}, timeout=GRACE_SECONDS)
        return self._tail.decode("utf-8", "replace").strip()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    async def _keep_tail(self) -> None:
        """Read the output until it ends, so that the process never blocks; keep only the end."""
        stream = self._child.stdout
        while stream is not None and (chunk := await stream.read(OUTPUT_TAIL_BYTES)):
            self._tail += chunk
            del self._tail[:-OUTPUT_TAIL_BYTES]


class ProcessMarks:
    """The marks by which the processes of one data folder's sandboxes are recognized, even after a crash.

    A mark is `<hash of the folder's real path>:<session id>`. Methods that look at processes block for milliseconds:
    call them in a thread.
    """

    def __init__(self, folder: Path) -> None:
        self._prefix = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16] + ":"

    def mark(self, session_id: str) -> str:
        """Return the mark of the processes of a session's sandbox."""
        return self._prefix + session_id

    def session_ids(self) -> set[str]:
        """Return the ids of the sessions that have marked processes."""
        marks = {_mark_of(process) for process in psutil.process_iter()}
        return {mark.removeprefix(self._prefix) for mark in marks if mark.startswith(self._prefix)}

    def kill(self, session_ids: Collection[str]) -> int:
        """Kill the processes of these sessions; return how many were found.

        Search until none is found, since a process may start another meanwhile, but at most for a second. Search twice
        without a find: while a process executes a new program, its environment cannot be read.
        """
        marks = {self.mark(session_id) for session_id in session_ids}
        spared = {os.getpid(), os.getppid()}
        killed: set[int] = set()
        quiet = 0
        for _ in range(KILL_ROUNDS):
            found = [each for each in psutil.process_iter() if each.pid not in spared and _mark_of(each) in marks]
            quiet = 0 if found else quiet + 1
            if quiet == QUIET_ROUNDS:
                break
            for process in found:
                killed.add(process.pid)
                _kill(process)
            time.sleep(KILL_PAUSE_SECONDS)
        return len(killed)


def kill_process_trees(pids: Collection[int]) -> None:
    """Kill these processes and their descendants. The machine's processes are listed once, whatever the number."""
    children: dict[int, list[psutil.Process]] = {}
    members: list[psutil.Process] = []
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process)
        if process.pid in pids:
            members.append(process)
    for member in members:  # grows during the loop
        members += children.get(member.pid, ())
    for member in members:
        _kill(member)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()  # psutil checks that the id was not given to another process
    except psutil.Error:
        return


def _mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK_VARIABLE, "")
    except (psutil.Error, OSError):
        return ""  # ended, or another user's


def _settings(folder: SessionFolder, exec_seconds: float) -> dict[str, str]:
    workspace, output = os.path.realpath(folder.workspace), os.path.realpath(folder.output)
    return {
        "SANDBOX_HOME": workspace,
        "SANDBOX_HOME_ALIAS": HOME_ALIAS,
        "SANDBOX_ROOTS": os.pathsep.join((workspace, output, temporary_folder())),
        # Both may be inside the temporary folder; they hold other sessions' files, the database and `.env`.
        "SANDBOX_CLOSED": os.pathsep.join((os.path.realpath(folder.path.parents[1]), os.path.realpath(REPOSITORY))),
        "SANDBOX_OUTPUT_DIR": output,
        "SANDBOX_EXEC_SECONDS": f"{exec_seconds:g}",
        # The browser starts with its first use. A desktop would open windows on the operator's own one.
        "SANDBOX_BROWSER": "lazy",
        "SANDBOX_DESKTOP": "false",
    }
