"""What the tests of the browser share: a session with a real browser, and a sandbox whose files are on this disk."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from app.domain.errors import SandboxFailure
from app.domain.models.browser import PageView
from app.domain.models.sandbox import BrowserEndpoint, FileText, FoundFiles
from app.infrastructure.browser.browsers import PlaywrightBrowsers
from app.infrastructure.browser.session import SessionBrowser
from tests.fakes.memory_sandbox import MemorySandbox, MemorySandboxProvider
from tests.integration.browser.chromium import Chromium
from tests.integration.browser.site import Site

HANGS = 'const asking = new XMLHttpRequest(); asking.open("GET", "/begun", false); asking.send(); for (;;);'
"""A script that tells the site when it is under way, and lets nothing else happen in its page from then on."""


class DiskSandbox(MemorySandbox):
    """A sandbox whose browser is the tests' Chromium and whose workspace is a folder of this machine."""

    def __init__(self, chromium: Chromium, home: Path, *, shared: bool = False) -> None:
        super().__init__()
        self._chromium = chromium
        self.browser = BrowserEndpoint(url=chromium.url, token="t", home=str(home), shared=shared)

    async def restart_browser(self) -> None:
        self._chromium.kill()
        self._chromium.start()

    async def file_read(self, file: str, *, start: int | None, end: int | None, sudo: bool) -> FileText:
        if not Path(file).is_file():
            raise SandboxFailure(f"no such file: {file}", status=404)
        return FileText(file=file, content="")

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        if not Path(path).is_dir():
            raise SandboxFailure(f"no such folder: {path}", status=404)
        return FoundFiles(path=path, files=tuple(str(each) for each in sorted(Path(path).rglob(glob))))


@dataclass
class House:
    """A session's browser, the site that it visits, and what is behind it."""

    browsers: PlaywrightBrowsers
    sandboxes: MemorySandboxProvider
    session_id: str
    site: Site
    chromium: Chromium
    home: Path

    async def browser(self) -> SessionBrowser:
        return await self.browsers.open(self.session_id)

    async def show(self, body: str, **rest: object) -> PageView:
        """Open a page that has `body`."""
        return await (await self.browser()).navigate(self.site.html(body, **rest))  # type: ignore[arg-type]

    async def asked(self, path: str) -> None:
        """Returns when the browser has asked the site for `path`."""
        async with asyncio.timeout(60):
            while path not in self.site.asked:
                await asyncio.sleep(0.01)

    async def again(self) -> str:
        """The text of the whole page as it is now."""
        return (await (await self.browser()).view()).text


def index(text: str, words: str) -> int:
    """The number of the only mark in `text` that has `words` in it."""
    found = re.findall(rf"(?<!\\)\[(\d+)[^\[\]]*?{re.escape(words)}", text)
    assert len(found) == 1, f"{words!r} is marked {len(found)} times in:\n{text}"
    return int(found[0])
