"""One Chromium and one driver for the folder; every test gets a session of its own with one blank tab."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.infrastructure.browser.browsers import PlaywrightBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.integration.browser.chromium import Chromium
from tests.integration.browser.house import DiskSandbox, House
from tests.integration.browser.site import Site


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("home"))
    browser.start()
    yield browser
    browser.kill()


@pytest.fixture(scope="session")
def web() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def site(web: Site) -> Iterator[Site]:
    yield web
    web.clear()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def connected() -> AsyncIterator[tuple[PlaywrightBrowsers, MemorySandboxProvider]]:
    sandboxes = MemorySandboxProvider()
    browsers = PlaywrightBrowsers(sandboxes)
    yield browsers, sandboxes
    await browsers.close()


@pytest_asyncio.fixture(loop_scope="session")
async def house(
    connected: tuple[PlaywrightBrowsers, MemorySandboxProvider], chromium: Chromium, site: Site, tmp_path: Path
) -> AsyncIterator[House]:
    browsers, sandboxes = connected
    session_id = uuid.uuid4().hex
    home = tmp_path / "home"
    home.mkdir()
    sandboxes.sandboxes[session_id] = DiskSandbox(chromium, home)
    yield House(browsers, sandboxes, session_id, site, chromium, home)
    await browsers.release(session_id)
    chromium.clear()
