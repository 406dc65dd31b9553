"""Downloads: into the workspace, never one over another, and told with path and size."""

import asyncio
import contextlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.external.sandbox import Sandbox
from app.infrastructure.browser.addresses import shown_path
from app.infrastructure.browser.channel import Channel, Json, number, text

FOLDER = "Downloads"
_UNITS = ("bytes", "KB", "MB", "GB")
_KILO = 1000


@dataclass(slots=True)
class _Download:
    name: str
    folder: str
    received: float = 0
    total: float = 0
    told: bool = False


class Downloads:
    """Where one browser's downloads go, and what became of them.

    Chromium writes a download over a file of the same name, and its place is settled before its name is known. So the
    downloads of each action have a folder of their own: `~/Downloads` while that is empty, then `~/Downloads/2`, …
    """

    def __init__(
        self,
        channel: Channel,
        home: str,
        context_id: str,
        *,
        note: Callable[[str], None],
        is_ours: Callable[[str], bool],
    ) -> None:
        """`context_id` is empty for the browser's own context; `note` is told what happened; `is_ours` knows our tabs.

        Chromium tells whoever listens of the downloads of everybody.
        """
        self._channel = channel
        self._home = home
        self._root = posixpath.join(home, FOLDER)
        self._context_id = context_id
        self._note = note
        self._is_ours = is_ours
        self._count = 0
        """Folders that are in use."""
        self._is_used = False
        self._active: dict[str, _Download] = {}
        self._changed = asyncio.Event()
        channel.on("Browser.downloadWillBegin", self._began)
        channel.on("Browser.downloadProgress", self._progressed)

    @property
    def active(self) -> bool:
        """Whether something is being downloaded that nobody was told about."""
        return any(not each.told for each in self._active.values())

    async def start(self, sandbox: Sandbox) -> None:
        """Take over the browser's downloads."""
        self._count = await _folders_used(sandbox, self._root)
        await self._direct()

    async def prepare(self) -> None:
        """An action begins: what it downloads does not go to where something is already."""
        if self._is_used:
            self._is_used = False
            self._count += 1
            await self._direct()

    async def begun(self, *, seconds: float) -> None:
        """Wait for a download that is known to come to begin."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_used:
                    self._changed.clear()
                    await self._changed.wait()

    async def settle(self, *, seconds: float) -> None:
        """Wait until what is being downloaded has arrived; what takes longer is noted as under way."""
        try:
            async with asyncio.timeout(seconds):
                while self.active:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for each in self._active.values():
                if not each.told:
                    each.told = True
                    self._note(f"{self._place(each)} is being downloaded: {_amount(each)} so far.")

    @property
    def _folder(self) -> str:
        return self._root if self._count == 0 else posixpath.join(self._root, str(self._count + 1))

    async def _direct(self) -> None:
        where: dict[str, object] = {"behavior": "allow", "downloadPath": self._folder, "eventsEnabled": True}
        if self._context_id:
            where["browserContextId"] = self._context_id
        await self._channel.send("Browser.setDownloadBehavior", where)

    def _began(self, event: Json) -> None:
        if self._context_id and not self._is_ours(text(event, "frameId")):
            return
        name = posixpath.basename(text(event, "suggestedFilename")) or "download"
        self._active[text(event, "guid")] = _Download(name, self._folder)
        self._is_used = True
        self._changed.set()

    def _progressed(self, event: Json) -> None:
        download = self._active.get(text(event, "guid"))
        if download is None:
            self._came_from_a_frame(event)
            return
        download.received, download.total = number(event, "receivedBytes"), number(event, "totalBytes")
        state = text(event, "state")
        if state == "inProgress":
            return
        del self._active[text(event, "guid")]
        if state == "completed":
            path = text(event, "filePath")
            where = shown_path(path, self._home) if path else self._place(download)
            self._note(f"Downloaded {where} ({_size(download.received)}).")
        else:
            self._note(f"The download of {download.name!r} was cut off after {_size(download.received)}.")
        self._changed.set()

    def _came_from_a_frame(self, event: Json) -> None:
        """A download whose beginning told of no tab of ours, and that lies in our folder all the same."""
        path = text(event, "filePath")
        if self._context_id and text(event, "state") == "completed" and path.startswith(self._root + "/"):
            self._is_used = True
            self._note(f"Downloaded {shown_path(path, self._home)} ({_size(number(event, 'receivedBytes'))}).")

    def _place(self, download: _Download) -> str:
        return shown_path(posixpath.join(download.folder, download.name), self._home)


async def _folders_used(sandbox: Sandbox, root: str) -> int:
    """How many downloads there have been: the highest number of a folder, 1 when there is anything else, or 0."""
    try:
        found = await sandbox.file_find(root, "*")
    except (SandboxFailure, SandboxUnavailable):
        return 0  # there is no such folder yet
    tops = {path.removeprefix(found.path).strip("/").partition("/")[0] for path in found.files}
    numbers = [int(each) for each in tops if each.isdigit()]
    return max(numbers, default=1 if tops else 0)


def _amount(download: _Download) -> str:
    if download.total > download.received:
        return f"{_size(download.received)} of {_size(download.total)}"
    return _size(download.received)


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < _KILO or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= _KILO
    return ""
