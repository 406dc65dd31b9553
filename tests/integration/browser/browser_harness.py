"""Test harness: a session with a real browser, and a sandbox whose files are a folder of this machine."""

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
from tests.integration.browser.local_site import LocalSite, Page

PAGES = Path(__file__).parent / "pages"
"""Folder of pages with one kind of difficulty each."""
REQUEST_SECONDS = 60
"""Time limit in seconds for a request to reach the site."""
HANGING_SCRIPT = 'const begun = new XMLHttpRequest(); begun.open("GET", "/begun", false); begun.send(); for (;;);'
"""A script that requests /begun and then blocks its page."""
WAITING_SCRIPT = "await fetch('/begun'); await new Promise(() => {})"
"""A script that requests /begun and then waits without blocking its page."""


class FolderSandbox(MemorySandbox):
    """A sandbox whose browser is the tests' Chromium and whose workspace is a local folder."""

    def __init__(self, chromium: Chromium, home: Path, *, shared: bool = False) -> None:
        super().__init__()
        self._chromium = chromium
        self.browser = BrowserEndpoint(url=chromium.url, token="t", home=str(home), shared=shared)

    async def restart_browser(self) -> None:
        """Implement `Sandbox.restart_browser`."""
        self._chromium.kill()
        self._chromium.start()

    async def file_read(self, file: str, *, start: int | None, end: int | None, sudo: bool) -> FileText:
        """Implement `Sandbox.file_read`, without the content."""
        if not Path(file).is_file():
            raise SandboxFailure(f"no such file: {file}", status=404)
        return FileText(file=file, content="")

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        """Implement `Sandbox.file_find`."""
        if not Path(path).is_dir():
            raise SandboxFailure(f"no such folder: {path}", status=404)
        return FoundFiles(path=path, files=tuple(str(each) for each in sorted(Path(path).rglob(glob))))


@dataclass
class BrowserHarness:
    """A session's browser, the site that it visits, and the Chromium and the workspace behind it."""

    browsers: PlaywrightBrowsers
    sandboxes: MemorySandboxProvider
    session_id: str
    site: LocalSite
    chromium: Chromium
    home: Path

    async def browser(self) -> SessionBrowser:
        """Return the session's browser."""
        return await self.browsers.open(self.session_id)

    async def open_page(self, body: str, **options: object) -> PageView:
        """Serve a page with `body`, open it, and return its snapshot; `options` are those of `LocalSite.html`."""
        return await (await self.browser()).navigate(self.site.html(body, **options))  # type: ignore[arg-type]

    async def open_corpus_page(self, name: str, *, query: str = "", host: str = "127.0.0.1") -> PageView:
        """Serve a page of the folder `pages`, open it, and return its snapshot."""
        self.site.pages[f"/{name}"] = Page((PAGES / name).read_bytes())
        return await (await self.browser()).navigate(self.site.url(f"/{name}?{query}", host=host))

    async def wait_for_request(self, path: str) -> None:
        """Wait until the browser has requested `path`."""
        async with asyncio.timeout(REQUEST_SECONDS):
            while path not in self.site.requests:
                await asyncio.sleep(0.01)

    async def page_text(self) -> str:
        """Return the text of a whole snapshot of the current page."""
        return (await (await self.browser()).view()).text


def number_of(text: str, part: str) -> int:
    """Return the number of the only mark in `text` that contains `part`."""
    found = re.findall(rf"(?<!\\)\[(\d+)[^\[\]]*?{re.escape(part)}", text)
    assert len(found) == 1, f"{part!r} is in {len(found)} marks in:\n{text}"
    return int(found[0])
