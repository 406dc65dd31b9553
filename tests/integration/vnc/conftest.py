"""Fixtures: noVNC from npm in a real Chromium, on a page of another origin than the service."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from playwright.async_api import Error as PlaywrightError

from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.containers import SANDBOX_IMAGE, cleared, docker, inspect, named, run
from tests.support.service import ROOT, ApiClient, ServiceProcess

NOVNC = "@novnc/novnc@1.7.0"
CACHE = ROOT / ".cache" / NOVNC.replace("/", "-")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Handler(SimpleHTTPRequestHandler):
    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        if path.startswith("/novnc/"):
            return str(CACHE / "node_modules" / "@novnc" / "novnc" / path.removeprefix("/novnc/"))
        return str(Path(__file__).parent / "viewer.html")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def novnc() -> None:
    """Install noVNC into the cache on the first run."""
    if not (CACHE / "node_modules" / "@novnc").is_dir():
        npm = ("npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(CACHE), NOVNC)
        asyncio.run(run(*npm))


@pytest.fixture(scope="module")
def site(novnc: None) -> Iterator[str]:
    """Serve `viewer.html` and return its origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler)) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """Start the viewers' browser, which is independent of the sandbox's browser."""
    assert CHROMIUM, "these tests need a Chromium: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@dataclass
class VncStack:
    """The service with Docker sandboxes, and a site whose pages may use it."""

    client: ApiClient
    model: ScriptedOpenAI
    chromium: Browser
    site: str
    prefix: str

    def address(self, session_id: str) -> str:
        return f"{str(self.client.http.base_url).replace('http', 'ws')}/api/v1/sessions/{session_id}/vnc"

    async def ticket(self, session_id: str, *, view_only: bool) -> str:
        body = {"session_id": session_id, "view_only": view_only}
        return (await self.client.http.post("/api/v1/tickets", json=body)).json()["data"]["ticket"]

    async def viewer(self, session_id: str, *, view_only: bool = False) -> Page:
        """Open a page with noVNC that starts to connect; with a ticket if it is view-only."""
        page = await self.chromium.new_page(viewport={"width": 1280, "height": 800})
        lost: list[str] = []
        page.on("requestfailed", lambda request: lost.append(request.failure or ""))
        # Starting or stopping a container changes the network of this machine, and Chromium then aborts what it is
        # loading,
        # including noVNC's modules.
        for _ in range(10):
            lost.clear()
            query = f"?ticket={await self.ticket(session_id, view_only=True)}" if view_only else ""
            try:
                await page.goto(f"{self.site}/?url={quote(self.address(session_id) + query)}")
                await page.wait_for_function("window.started", timeout=5_000)
            except PlaywrightError as error:
                assert any("ERR_NETWORK_CHANGED" in each for each in (*lost, error.message)), (lost, error.message)
            else:
                return page
        raise AssertionError("the network never came to rest")

    async def containers(self, session_id: str) -> list[str]:
        """Return the names of the session's containers."""
        return [name for name in (await named(self.prefix))["container"] if session_id in name]

    async def container(self, session_id: str) -> dict[str, Any]:
        """Return the session's sandbox container."""
        (name,) = await self.containers(session_id)
        return await inspect(name)

    @asynccontextmanager
    async def sandbox_page(self, session_id: str) -> AsyncIterator[Page]:
        """Open the page in the sandbox's own browser over its DevTools."""
        found = await self.container(session_id)
        (place,) = found["NetworkSettings"]["Networks"].values()
        token = dict(line.split("=", 1) for line in found["Config"]["Env"])["SANDBOX_TOKEN"]
        async with async_playwright() as playwright:
            browser = await playwright.chromium.connect_over_cdp(
                f"http://{place['IPAddress']}:49171/cdp", headers={"Authorization": f"Bearer {token}"}
            )
            context = browser.contexts[0]
            yield context.pages[0] if context.pages else await context.new_page()


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stack(
    tmp_path_factory: pytest.TempPathFactory, site: str, chromium: Browser, model: ScriptedOpenAI
) -> AsyncIterator[VncStack]:
    """The service and the viewers' browser, which all tests share."""
    async with cleared(f"vnc-{uuid.uuid4().hex[:6]}") as prefix:
        service = ServiceProcess(
            tmp_path_factory.mktemp("service") / "data",
            API_KEY="sk-scripted",
            API_BASE=model.url,
            MODEL_NAME="scripted",
            SANDBOX_PROVIDER="docker",
            SANDBOX_IMAGE=SANDBOX_IMAGE,
            SANDBOX_NAME_PREFIX=prefix,
            SANDBOX_NETWORK=f"{prefix}-network",
            ALLOWED_ORIGINS=site,
        )
        client = await service.start()
        try:
            yield VncStack(client, model, chromium, site, prefix)
        finally:
            await client.close()
            await service.stop()
        log = service.log.read_text()
        assert "Traceback" not in log, log[-4000:]


@pytest_asyncio.fixture(loop_scope="module")
async def stack(shared_stack: VncStack) -> AsyncIterator[VncStack]:
    """The service without sessions, and a browser without pages."""
    yield shared_stack
    for context in shared_stack.chromium.contexts:
        await context.close()
    http = shared_stack.client.http
    for session in (await http.get("/api/v1/sessions")).json()["data"]["sessions"]:
        assert (await http.delete(f"/api/v1/sessions/{session['session_id']}")).status_code == 200


async def kill(container: dict[str, Any]) -> None:
    """Kill a container, as the engine does when it runs out of memory."""
    await docker("kill", container["Id"])
