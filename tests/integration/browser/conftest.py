"""One Chromium and one driver for the folder. Every test gets a session of its own with one blank tab."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.infrastructure.browser.browsers import PlaywrightBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.integration.browser.browser_harness import PAGES, BrowserHarness, FolderSandbox
from tests.integration.browser.chromium import Chromium
from tests.integration.browser.libraries import LibraryPages, build_libraries
from tests.integration.browser.local_site import LocalSite


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The Chromium that all tests share; a test must not kill it."""
    browser = Chromium(tmp_path_factory.mktemp("home"))
    browser.start()
    yield browser
    browser.kill()


@pytest.fixture(scope="session")
def shared_site() -> Iterator[LocalSite]:
    """The site that all tests share."""
    site = LocalSite()
    yield site
    site.close()


@pytest.fixture
def site(shared_site: LocalSite) -> Iterator[LocalSite]:
    """The site, without pages."""
    yield shared_site
    shared_site.clear()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_browsers() -> AsyncIterator[tuple[PlaywrightBrowsers, MemorySandboxProvider]]:
    """The adapter under test, with one driver for all tests, and its sandboxes."""
    sandboxes = MemorySandboxProvider()
    browsers = PlaywrightBrowsers(sandboxes)
    yield browsers, sandboxes
    await browsers.close()


@pytest_asyncio.fixture(loop_scope="session")
async def harness(
    shared_browsers: tuple[PlaywrightBrowsers, MemorySandboxProvider],
    chromium: Chromium,
    site: LocalSite,
    tmp_path: Path,
) -> AsyncIterator[BrowserHarness]:
    """A session with a browser, and an empty workspace."""
    browsers, sandboxes = shared_browsers
    session_id = uuid.uuid4().hex
    home = tmp_path / "home"
    home.mkdir()
    sandboxes.sandboxes[session_id] = FolderSandbox(chromium, home)
    yield BrowserHarness(browsers, sandboxes, session_id, site, chromium, home)
    await browsers.release(session_id)
    chromium.close_tabs()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def libraries(
    shared_browsers: tuple[PlaywrightBrowsers, MemorySandboxProvider],
    chromium: Chromium,
    shared_site: LocalSite,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[LibraryPages]:
    """A session with a browser for the pages of libraries, shared by the tests of a module."""
    built = build_libraries()
    shared_site.folders = {"pages": PAGES, "built": built / "built", "node_modules": built / "node_modules"}
    browsers, sandboxes = shared_browsers
    session_id = uuid.uuid4().hex
    sandboxes.sandboxes[session_id] = FolderSandbox(chromium, tmp_path_factory.mktemp("home"))
    yield LibraryPages(await browsers.open(session_id), shared_site)
    await browsers.release(session_id)
    chromium.close_tabs()
