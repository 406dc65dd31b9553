"""The `Sandbox` port over HTTP: one session's use of a sandbox."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.external.sandbox import Desktop
from app.domain.models.sandbox import (
    BrowserEndpoint,
    FileChange,
    FileImage,
    FileMatches,
    FileText,
    FolderListing,
    FoundFiles,
    PartStatus,
    ShellState,
)
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import JsonObject, SandboxApiClient
from app.infrastructure.sandbox.client.desktop import open_desktop
from app.infrastructure.sandbox.client.shell_ids import encode_id, encode_scope

MARGIN_SECONDS = 10.0
"""Time in seconds that a busy machine may add to the time that a call takes."""

FILE_SECONDS = 60.0
"""Time limit in seconds for a call of the file API."""

BROWSER_SECONDS = 60.0
"""Time limit in seconds for a browser to end, start and respond."""

MAX_WAIT_SECONDS = 300.0
"""Maximum time in seconds that the sandbox waits in `shell/wait`."""

NOT_FOUND = 404

HOME = "/home/ubuntu"
"""The workspace of a container."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInstance:
    """A sandbox instance, as its clients need it."""

    api: SandboxApiClient
    """Its client, which the owner closes."""
    id: str
    """Its name; no other instance ever gets the same."""
    home: str = HOME
    """The path of its workspace."""
    exec_seconds: float = 10.0
    """Its own SANDBOX_EXEC_SECONDS."""
    activity: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Entered around every call that counts as use."""


FindSuccessor = Callable[[SandboxInstance, SandboxUnavailable, bool], Awaitable[SandboxInstance]]
"""Takes an instance, the error of a call on it, and whether the call may be made twice. Returns the instance on which
to make the call again, or raises the error to report."""


class HttpSandbox:
    """One session's use of a sandbox.

    Several sessions may share a sandbox: with a scope, the client puts `<scope>.` before every shell id it sends, and
    returns the ids that the caller used.

    With `find_successor`, it continues with the next instance when the sandbox instance has ended. A call that failed
    is made again there if it has not reached the first instance, or changes nothing. Otherwise, a request is never
    repeated, since a command may have run.
    """

    def __init__(
        self, instance: SandboxInstance, *, scope: str = "", find_successor: FindSuccessor | None = None
    ) -> None:
        """Use `instance`.

        Args:
            instance: The sandbox instance.
            scope: The session's id if the sandbox is shared, else "".
            find_successor: Finds the instance to continue with after a call that got no response.
        """
        self._instance = instance
        self._is_shared = bool(scope)
        self._prefix = f"{encode_scope(scope)}." if scope else ""
        self._find_successor = find_successor

    @property
    def instance_id(self) -> str:
        """Implement `Sandbox.instance_id`."""
        return self._instance.id

    @property
    def browser(self) -> BrowserEndpoint:
        """Implement `Sandbox.browser`."""
        api, home = self._instance.api, self._instance.home
        return BrowserEndpoint(url=f"{api.address}/cdp", token=api.token, home=home, shared=self._is_shared)

    async def status(self) -> Mapping[str, PartStatus]:
        """Implement `Sandbox.status`."""
        get = self._call(lambda api: api.get("status", seconds=MARGIN_SECONDS), counts=False, repeatable=True)
        return responses.parse_parts(await get)

    async def restart_browser(self) -> None:
        """Implement `Sandbox.restart_browser`."""
        await self._call(lambda api: api.post("browser/restart", {}, seconds=BROWSER_SECONDS), repeatable=True)

    async def desktop(self) -> Desktop:
        """Implement `Sandbox.desktop`. While the connection is open, the sandbox itself counts it as use."""
        return await self._call(lambda api: open_desktop(api.address, api.token), repeatable=True)

    async def shell_exec(self, shell_id: str, exec_dir: str, command: str) -> ShellState:
        """Implement `Sandbox.shell_exec`."""
        seconds = self._instance.exec_seconds + MARGIN_SECONDS
        return await self._call_shell("exec", shell_id, {"exec_dir": exec_dir, "command": command}, seconds)

    async def shell_view(self, shell_id: str) -> ShellState:
        """Implement `Sandbox.shell_view`."""
        return await self._call_shell("view", shell_id, {}, MARGIN_SECONDS, repeatable=True)

    async def shell_watch(self, shell_id: str, *, version: str = "", seconds: float = 0) -> ShellState:
        """Implement `Sandbox.shell_watch`."""
        fields: JsonObject = {"version": version, "seconds": seconds}
        return await self._call_shell("watch", shell_id, fields, seconds + MARGIN_SECONDS, is_use=False)

    async def shell_wait(self, shell_id: str, seconds: int | None) -> ShellState:
        """Implement `Sandbox.shell_wait`."""
        limit = MAX_WAIT_SECONDS if seconds is None else min(max(seconds, 0), MAX_WAIT_SECONDS)
        fields: JsonObject = {} if seconds is None else {"seconds": seconds}
        return await self._call_shell("wait", shell_id, fields, limit + MARGIN_SECONDS, repeatable=True)

    async def shell_write(self, shell_id: str, text: str, *, press_enter: bool) -> ShellState:
        """Implement `Sandbox.shell_write`."""
        seconds = self._instance.exec_seconds + MARGIN_SECONDS
        return await self._call_shell("write", shell_id, {"input": text, "press_enter": press_enter}, seconds)

    async def shell_kill(self, shell_id: str) -> ShellState:
        """Implement `Sandbox.shell_kill`."""
        return await self._call_shell("kill", shell_id, {}, MARGIN_SECONDS)

    async def kill_all(self) -> None:
        """Implement `Sandbox.kill_all`."""
        # An instance that has ended runs nothing, so it needs no successor.
        with self._instance.activity:
            await self._instance.api.post("shell/kill_all", {"prefix": self._prefix}, seconds=MARGIN_SECONDS)

    async def file_read(
        self,
        file: str,
        *,
        start: int | None,
        end: int | None,
        sudo: bool,
        start_char: int | None = None,
        end_char: int | None = None,
        encoding: str | None = None,
    ) -> FileText:
        """Implement `Sandbox.file_read`."""
        fields: dict[str, object] = {"file": file, "start_line": start, "end_line": end, "sudo": sudo, "view": True}
        fields |= _given(start_char=start_char, end_char=end_char, encoding=encoding)
        return responses.parse_file_text(await self._call_file("read", fields, repeatable=True), file)

    async def file_watch(self, file: str) -> FileText:
        """Implement `Sandbox.file_watch`."""
        # Without a successor: looking on starts no sandbox.
        data = await self._instance.api.post("file/read", {"file": file}, seconds=FILE_SECONDS, is_use=False)
        return responses.parse_file_text(data, file)

    async def file_write(
        self, file: str, content: str, *, append: bool, sudo: bool, encoding: str | None = None
    ) -> FileChange:
        """Implement `Sandbox.file_write`."""
        fields: dict[str, object] = {"file": file, "content": content, "append": append, "sudo": sudo, "view": True}
        fields |= _given(encoding=encoding)
        return responses.parse_file_change(await self._call_file("write", fields), file, "bytes_written")

    async def file_replace(
        self, file: str, old: str, new: str, *, sudo: bool, encoding: str | None = None
    ) -> FileChange:
        """Implement `Sandbox.file_replace`."""
        fields: dict[str, object] = {"file": file, "old_str": old, "new_str": new, "sudo": sudo, "view": True}
        fields |= _given(encoding=encoding)
        return responses.parse_file_change(await self._call_file("replace", fields), file, "replaced_count")

    async def file_search(self, file: str, regex: str, *, sudo: bool) -> FileMatches:
        """Implement `Sandbox.file_search`."""
        fields = {"file": file, "regex": regex, "sudo": sudo, "view": True}
        return responses.parse_file_matches(await self._call_file("search", fields, repeatable=True), file)

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        """Implement `Sandbox.file_find`."""
        return responses.parse_found_files(
            await self._call_file("find", {"path": path, "glob": glob}, repeatable=True), path
        )

    async def file_list(self, path: str) -> FolderListing:
        """Implement `Sandbox.file_list`."""
        return responses.parse_folder(await self._call_file("list", {"path": path}, repeatable=True))

    async def file_download(self, file: str) -> AsyncGenerator[bytes, None]:
        """Implement `Sandbox.file_download`."""
        instance = self._instance  # another one has other bytes
        with instance.activity:
            async with aclosing(instance.api.download("file/download", {"path": file}, seconds=FILE_SECONDS)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def file_image(self, file: str, *, max_side: int) -> FileImage:
        """Implement `Sandbox.file_image`."""
        return responses.parse_file_image(
            await self._call_file("image", {"file": file, "max_side": max_side}, repeatable=True), file
        )

    async def _call_shell(
        self,
        call: str,
        shell_id: str,
        fields: JsonObject,
        seconds: float,
        *,
        repeatable: bool = False,
        is_use: bool = True,
    ) -> ShellState:
        encoded_id = self._prefix + encode_id(shell_id)
        body = {"id": encoded_id, **fields}
        try:
            if is_use:
                make = self._call(lambda api: api.post(f"shell/{call}", body, seconds=seconds), repeatable=repeatable)
            else:
                make = self._instance.api.post(f"shell/{call}", body, seconds=seconds, is_use=False)
            data = await make
        except SandboxFailure as error:
            if self._prefix and call != "exec" and error.status == NOT_FOUND:
                # The sandbox's own message lists all shells, those of other sessions included.
                raise SandboxFailure(f"no such shell: {shell_id}; shell_exec makes one", status=NOT_FOUND) from error
            if encoded_id == shell_id or not shell_id:
                raise
            # The caller knows the shell by its own id only.
            raise SandboxFailure(str(error).replace(encoded_id, shell_id), status=error.status) from error
        return responses.parse_shell_state(data, shell_id)

    async def _call_file(self, call: str, fields: JsonObject, *, repeatable: bool = False) -> JsonObject:
        return await self._call(
            lambda api: api.post(f"file/{call}", fields, seconds=FILE_SECONDS), repeatable=repeatable
        )

    async def _call(
        self, call: Callable[[SandboxApiClient], Awaitable[T]], *, repeatable: bool, counts: bool = True
    ) -> T:
        """Make a call on the instance, and once more on its successor if that is allowed.

        Args:
            call: Makes the call.
            repeatable: Whether the call may be made twice.
            counts: Whether the call counts as use.
        """
        instance = self._instance
        try:
            with instance.activity if counts else nullcontext():
                return await call(instance.api)
        except SandboxUnavailable as error:
            if self._find_successor is None:
                raise
            instance = self._instance = await self._find_successor(instance, error, repeatable)
        with instance.activity if counts else nullcontext():
            return await call(instance.api)


def _given(**fields: str | int | None) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
