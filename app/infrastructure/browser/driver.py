"""The Playwright driver of this process, and how a sandbox's browser is found and connected to.

The driver is a Node program of about 100 MB. Everything that pages log and do passes through it, and a page that floods
it makes it grow for good (20 MB per second were measured). So its memory is limited, and a large one is restarted.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import orjson
from playwright.async_api import Browser, Playwright, async_playwright
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import TimeoutError as PlaywrightTimeout

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.models.sandbox import BrowserEndpoint
from app.infrastructure.browser import cdp

log = logging.getLogger(__name__)

START_SECONDS = 30.0
"""Time limit in seconds for starting the driver."""
CONNECT_SECONDS = 10.0
"""Time limit in seconds for connecting to a browser."""
STOP_SECONDS = 5.0
"""Time limit in seconds for stopping the driver."""
MAX_HEAP_MB = 1024
"""Maximum heap of the driver in MB. At more it exits, and the next call starts another one."""
RESTART_MB = 500
"""Resident memory of the driver in MB from which it is restarted when no browser is in use."""

BROWSER_START_SECONDS = 20.0
"""Maximum time in seconds to wait for a browser to start."""
REFUSED_SECONDS = 5.0
"""Maximum time in seconds to wait while nothing listens: the sandbox may have just been started."""
RESPONSE_SECONDS = 22.0
"""Time limit in seconds for one HTTP response: a sandbox delays it while its browser starts."""
POLL_SECONDS = 0.15
"""Pause in seconds between two requests."""
MAX_RESPONSE_BYTES = 256 * 1024
"""Number of bytes after which a response is no longer read."""

_OK = 200
_UNAUTHORIZED = 401
_STARTING = frozenset({502, 503, 504})


class BrowserUnresponsive(SandboxUnavailable):
    """The browser was reached, but the connection was not established in time: one of its tabs hangs."""


class PlaywrightDriver:
    """Starts the driver when it is needed or has died, and stops it when no browser is connected."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._lock = asyncio.Lock()
        self._browsers: set[Browser] = set()
        self._background = cdp.BackgroundTasks()

    async def connect(self, address: str, token: str) -> Browser:
        """Connect to the browser whose WebSocket URL is `address`.

        Raises:
            BrowserUnresponsive: The connection was not established in time.
            SandboxUnavailable: The browser cannot be reached, or the driver does not start.
        """
        connecting = asyncio.ensure_future(self._connect_or_restart(address, token))
        try:
            browser = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._close_when_connected(connecting)
            raise
        except PlaywrightTimeout:
            raise BrowserUnresponsive("The browser does not answer: restart it.") from None
        except PlaywrightError as error:
            raise SandboxUnavailable("The browser cannot be connected to.") from error
        self._browsers.add(browser)
        browser.on("disconnected", lambda gone: self._browsers.discard(gone))
        return browser

    async def stop_if_unused(self) -> None:
        """Stop the driver if no browser is connected. The next `connect` starts it again."""
        async with self._lock:
            if not self._browsers:
                await self._stop()

    @property
    def is_large(self) -> bool:
        """Whether the driver has grown so much that it should be restarted."""
        return self._playwright is not None and _driver_memory() > RESTART_MB << 20

    async def close(self) -> None:
        """Stop the driver and with it every connection."""
        async with self._lock:
            self._browsers.clear()
            await self._stop()

    async def _connect_or_restart(self, address: str, token: str) -> Browser:
        try:
            return await self._connect(address, token)
        except PlaywrightError as error:
            if "closed" not in error.message.lower():
                raise
        async with self._lock:
            await self._stop()  # the driver has died
        return await self._connect(address, token)

    async def _connect(self, address: str, token: str) -> Browser:
        playwright = await self._start()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # A person uses the browser too, so Playwright's defaults (emulation, download folder) must not apply.
        return await playwright.chromium.connect_over_cdp(
            address, headers=headers, no_defaults=True, timeout=CONNECT_SECONDS * 1000
        )

    def _close_when_connected(self, connecting: asyncio.Task[Browser]) -> None:
        """Close a connection that nobody waits for any more."""

        async def close() -> None:
            with contextlib.suppress(PlaywrightError, SandboxUnavailable):
                await (await connecting).close()

        self._background.start(close())

    async def _start(self) -> Playwright:
        async with self._lock:
            if self._playwright is None:
                try:
                    async with asyncio.timeout(START_SECONDS):
                        with _node_heap_limit():
                            self._playwright = await async_playwright().start()
                except (OSError, TimeoutError) as error:
                    raise SandboxUnavailable("The program that drives browsers does not start.") from error
            return self._playwright

    async def _stop(self) -> None:
        playwright, self._playwright = self._playwright, None
        if playwright is not None:
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await playwright.stop()


async def find_browser(endpoint: BrowserEndpoint, *, seconds: float = BROWSER_START_SECONDS) -> str:
    """Return the WebSocket URL of a sandbox's browser; wait for at most `seconds` while it starts.

    Raises:
        BrowserFailure: The sandbox reports that it has no browser.
        SandboxUnavailable: The sandbox does not respond, or its browser does not start in time.
    """
    start = time.monotonic()
    async with _http_client(endpoint) as client:
        while True:
            status, body = await _request(client, "GET", "json/version")
            if status == _OK and (address := _websocket_url(endpoint, body)):
                return address
            message = cdp.text({"body": body}, "body", "message")
            if status == _UNAUTHORIZED:
                raise SandboxUnavailable("The sandbox refused our token (SANDBOX_TOKEN).")
            if status and status not in _STARTING:
                raise BrowserFailure(message or "The sandbox has no browser.", status=status)
            if time.monotonic() - start > (seconds if status else min(REFUSED_SECONDS, seconds)):
                raise SandboxUnavailable(message or "The sandbox's browser does not answer.")
            await asyncio.sleep(POLL_SECONDS)


async def close_all_tabs(endpoint: BrowserEndpoint) -> None:
    """Replace all tabs with a blank one: a tab that hangs keeps a driver from connecting.

    Raises:
        SandboxUnavailable: The browser does not respond.
    """
    async with _http_client(endpoint) as client:
        listed, targets = await _request(client, "GET", "json/list")
        opened, _ = await _request(client, "PUT", "json/new?about:blank")
        if (listed, opened) != (_OK, _OK):
            raise SandboxUnavailable("The sandbox's browser does not answer.")
        for target in cdp.items({"targets": targets}, "targets"):
            if cdp.text(target, "type") == "page" and cdp.text(target, "id").isalnum():
                await _request(client, "GET", f"json/close/{cdp.text(target, 'id')}")


def _http_client(endpoint: BrowserEndpoint) -> httpx.AsyncClient:
    headers = {"Accept-Encoding": "identity"}
    if endpoint.token:
        headers["Authorization"] = f"Bearer {endpoint.token}"
    # Creating a TLS context takes 20 ms; a plain address needs none.
    verify = endpoint.url.startswith("https:")
    return httpx.AsyncClient(base_url=endpoint.url, headers=headers, verify=verify, trust_env=False)


async def _request(client: httpx.AsyncClient, method: str, path: str) -> tuple[int, object]:
    """Return the status and the JSON body of a response; status 0 if there is none, body None if it is not JSON."""
    body = b""
    try:
        async with asyncio.timeout(RESPONSE_SECONDS), client.stream(method, path, timeout=None) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    break
    except (TimeoutError, httpx.TransportError):
        return 0, None
    try:
        return response.status_code, orjson.loads(body)
    except orjson.JSONDecodeError:
        return response.status_code, None


def _websocket_url(endpoint: BrowserEndpoint, body: object) -> str:
    """Return the browser's WebSocket URL. Only the path comes from the response: a sandbox must not choose the host."""
    reported = cdp.text({"body": body}, "body", "webSocketDebuggerUrl")
    if not reported:
        return ""
    base = httpx.URL(endpoint.url)
    scheme = "wss" if base.scheme == "https" else "ws"
    return str(base.copy_with(scheme=scheme, raw_path=httpx.URL(reported).raw_path))


@contextlib.contextmanager
def _node_heap_limit() -> Generator[None]:
    """Set the heap limit in the environment while Node starts: Playwright passes it on and accepts no other."""
    before = os.environ.get("NODE_OPTIONS")
    os.environ["NODE_OPTIONS"] = f"{before or ''} --max-old-space-size={MAX_HEAP_MB}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["NODE_OPTIONS"]
        else:
            os.environ["NODE_OPTIONS"] = before


def _driver_memory() -> int:
    """Return the resident bytes of the largest driver among this process's children; 0 on a system without /proc."""
    pages = 0
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError, IndexError):  # a process exited meanwhile; the next sweep looks again
            for pid in children.read_text().split():
                if b"playwright" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    pages = max(pages, int(Path(f"/proc/{pid}/statm").read_text().split()[1]))
    return pages * os.sysconf("SC_PAGE_SIZE")
