"""Use cases: look at the shells and the files of a session's sandbox."""

from dataclasses import dataclass

from app.domain.errors import NotFound
from app.domain.external.sandbox import SandboxProvider
from app.domain.models.sandbox import FileText, ShellState
from app.domain.repositories.sessions import SessionRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInspector:
    """Read-only access to the sandbox of a session, for its owner."""

    sessions: SessionRepository
    sandboxes: SandboxProvider

    async def view_shell(self, session_id: str, shell_id: str, *, owner: str) -> ShellState:
        """Return the console of a shell. A sandbox that is not running has no shells and is not started.

        Raises:
            NotFound: The session does not exist, or its sandbox is not running.
            SandboxFailure: The shell does not exist.
        """
        await self.sessions.get(session_id, owner=owner)
        sandbox = await self.sandboxes.find(session_id)
        if sandbox is None:
            raise NotFound("no such shell: this session's sandbox is not running")
        return await sandbox.shell_view(shell_id)

    async def read_file(self, session_id: str, path: str, *, owner: str) -> FileText:
        """Return a text file of the workspace. The sandbox is started if it is not running.

        Raises:
            NotFound: The session does not exist.
            SandboxFailure: The file does not exist or cannot be read.
        """
        await self.sessions.get(session_id, owner=owner)
        sandbox = await self.sandboxes.acquire(session_id)
        return await sandbox.file_read(path, start=None, end=None, sudo=False)
