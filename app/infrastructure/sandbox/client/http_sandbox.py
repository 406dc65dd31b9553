"""A session's sandbox over HTTP: the `Sandbox` port on the sandbox service's API."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from app.domain.errors import SandboxFailure
from app.domain.external.sandbox import Desktop
from app.domain.models.sandbox import BrowserEndpoint, FileMatches, FileText, FoundFiles, PartStatus, ShellState
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import JsonObject, SandboxApiClient
from app.infrastructure.sandbox.client.desktop import open_desktop
from app.infrastructure.sandbox.client.shell_ids import encode_id, encode_scope

MARGIN_SECONDS = 10.0
"""What a busy machine may add to the time that a call takes by its nature."""
FILE_SECONDS = 60.0
BROWSER_SECONDS = 60.0
"""How long a browser may take to end, to start and to answer."""
NOT_FOUND = 404
LONGEST_WAIT_SECONDS = 300.0
"""The longest that the sandbox lets `shell/wait` wait."""

HOME = "/home/ubuntu"
"""The workspace of a container."""


class HttpSandbox:
    """One session's use of a sandbox. Does not own `link`: whoever opened it closes it.

    Several sessions may share a sandbox: with `scope` (the session's id) every shell id gets `<scope>.` before it, and
    answers carry the id that the caller used. Nothing that was sent is ever sent again: a command may have run.
    """

    def __init__(
        self,
        link: SandboxApiClient,
        *,
        scope: str = "",
        instance_id: str = "",
        home: str = HOME,
        exec_seconds: float = 10.0,
        activity: AbstractContextManager[None] | None = None,
    ) -> None:
        """`computer` names this life of the sandbox (its address when empty), `home` is its workspace.

        `exec_seconds` is the sandbox's own SANDBOX_EXEC_SECONDS; `activity` is entered around every call.
        """
        self._link = link
        self._computer = instance_id or link.address
        self._browser = BrowserEndpoint(url=f"{link.address}/cdp", token=link.token, home=home, shared=bool(scope))
        self._prefix = f"{encode_scope(scope)}." if scope else ""
        self._exec_seconds = exec_seconds
        self._activity = activity or nullcontext()

    @property
    def instance_id(self) -> str:
        """Names this life of the sandbox."""
        return self._computer

    @property
    def browser(self) -> BrowserEndpoint:
        """Where the browser is driven."""
        return self._browser

    async def status(self) -> Mapping[str, PartStatus]:
        """The state of each part by its name. Does not count as use."""
        return responses.parse_parts(await self._link.get("status", seconds=MARGIN_SECONDS))

    async def restart_browser(self) -> None:
        """End the browser, start it again, and wait until it can be driven."""
        with self._activity:
            await self._link.post("browser/restart", {}, seconds=BROWSER_SECONDS)

    async def desktop(self) -> Desktop:
        """A new connection to the desktop. The sandbox itself counts it as use for as long as it is open."""
        with self._activity:
            return await open_desktop(self._link.address, self._link.token)

    async def shell_exec(self, shell: str, exec_dir: str, command: str) -> ShellState:
        """Run `command`; answers when it ends, or after a short while with status `running`."""
        seconds = self._exec_seconds + MARGIN_SECONDS
        return await self._shell("exec", shell, {"exec_dir": exec_dir, "command": command}, seconds)

    async def shell_view(self, shell: str) -> ShellState:
        """The whole console of `shell`, newest part kept when it is long."""
        return await self._shell("view", shell, {}, MARGIN_SECONDS)

    async def shell_wait(self, shell: str, seconds: int | None) -> ShellState:
        """Wait for the running command, at most `seconds`; the output is what came since the last look."""
        longest = LONGEST_WAIT_SECONDS if seconds is None else min(max(seconds, 0), LONGEST_WAIT_SECONDS)
        fields: JsonObject = {} if seconds is None else {"seconds": seconds}
        return await self._shell("wait", shell, fields, longest + MARGIN_SECONDS)

    async def shell_write(self, shell: str, text: str, *, press_enter: bool) -> ShellState:
        """Type into the running program."""
        seconds = self._exec_seconds + MARGIN_SECONDS
        return await self._shell("write", shell, {"input": text, "press_enter": press_enter}, seconds)

    async def shell_kill(self, shell: str) -> ShellState:
        """Kill what runs in `shell`, the whole process tree."""
        return await self._shell("kill", shell, {}, MARGIN_SECONDS)

    async def kill_all(self) -> None:
        """Kill what runs in every shell of this session."""
        with self._activity:
            await self._link.post("shell/kill_all", {"prefix": self._prefix}, seconds=MARGIN_SECONDS)

    async def file_read(self, file: str, *, start: int | None, end: int | None, sudo: bool) -> FileText:
        """Lines `start` (from 0) up to, not including, `end`."""
        fields = {"file": file, "start_line": start, "end_line": end, "sudo": sudo}
        return responses.parse_file_text(await self._file("read", fields), file)

    async def file_write(self, file: str, content: str, *, append: bool, sudo: bool) -> int:
        """Write or append text; answers the bytes written."""
        fields = {"file": file, "content": content, "append": append, "sudo": sudo}
        return responses.parse_count(await self._file("write", fields), "bytes_written")

    async def file_replace(self, file: str, old: str, new: str, *, sudo: bool) -> int:
        """Replace every occurrence; answers how many there were."""
        fields = {"file": file, "old_str": old, "new_str": new, "sudo": sudo}
        return responses.parse_count(await self._file("replace", fields), "replaced_count")

    async def file_search(self, file: str, regex: str, *, sudo: bool) -> FileMatches:
        """The lines that match."""
        return responses.parse_file_matches(
            await self._file("search", {"file": file, "regex": regex, "sudo": sudo}), file
        )

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        """The files below `path` whose path matches `glob`."""
        return responses.parse_found_files(await self._file("find", {"path": path, "glob": glob}), path)

    async def _shell(self, call: str, shell: str, fields: JsonObject, seconds: float) -> ShellState:
        known_as = self._prefix + encode_id(shell)
        try:
            with self._activity:
                data = await self._link.post(f"shell/{call}", {"id": known_as, **fields}, seconds=seconds)
        except SandboxFailure as error:
            if self._prefix and call != "exec" and error.status == NOT_FOUND:
                # The sandbox's own words name the shells that there are: other sessions' too.
                raise SandboxFailure(f"no such shell: {shell}; shell_exec makes one", status=NOT_FOUND) from error
            if known_as == shell or not shell:
                raise
            # The reader knows the shell by its own name only.
            raise SandboxFailure(str(error).replace(known_as, shell), status=error.status) from error
        return responses.parse_shell_state(data, shell)

    async def _file(self, call: str, fields: JsonObject) -> JsonObject:
        with self._activity:
            return await self._link.post(f"file/{call}", fields, seconds=FILE_SECONDS)
