"""Finding a sandbox's browser: waiting until it can be driven, with the sandbox's own words when it cannot."""

import asyncio
import time
from typing import cast

import httpx
import orjson

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.models.sandbox import BrowserEndpoint
from app.infrastructure.sandbox.client.api_client import http_transport

WAIT_SECONDS = 20.0
"""How long a browser may take to start."""
REFUSED_SECONDS = 5.0
"""How long nobody may listen at all: a sandbox that was just started does."""
ANSWER_SECONDS = 22.0
"""For one answer: a sandbox waits with it while its browser starts."""
PAUSE_SECONDS = 0.15
MAX_ANSWER_BYTES = 256 * 1024

OK = 200
UNAUTHORIZED = 401
STARTING = frozenset({502, 503, 504})


async def find_browser(endpoint: BrowserEndpoint, *, seconds: float = WAIT_SECONDS) -> str:
    """The address of the browser's WebSocket, waiting for at most `seconds` while it starts.

    Raises:
        BrowserFailure: the sandbox says that it has no browser.
        SandboxUnavailable: it does not answer, or its browser does not start in time.
    """
    began = time.monotonic()
    transport = http_transport(endpoint.url)
    try:
        while True:
            status, body = await _ask(transport, endpoint, "/json/version")
            if status == OK and (address := _address(endpoint, body)):
                return address
            waited = time.monotonic() - began
            if status == UNAUTHORIZED:
                raise SandboxUnavailable("The sandbox refused our token (SANDBOX_TOKEN).")
            if status and status not in STARTING:
                raise BrowserFailure(_words(body) or "The sandbox has no browser.", status=status)
            if waited > (seconds if status else min(REFUSED_SECONDS, seconds)):
                raise SandboxUnavailable(_words(body) or "The sandbox's browser does not answer.")
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await transport.aclose()


async def close_tabs(endpoint: BrowserEndpoint) -> None:
    """Put one blank tab in the place of all there are: a tab that hangs keeps a driver from connecting at all.

    Raises:
        SandboxUnavailable: the browser does not answer even so.
    """
    transport = http_transport(endpoint.url)
    try:
        status, body = await _ask(transport, endpoint, "/json/list")
        made, _ = await _ask(transport, endpoint, "/json/new?about:blank", method="PUT")
        if (status, made) != (OK, OK):
            raise SandboxUnavailable("The sandbox's browser does not answer.")
        for tab in _pages(body):
            await _ask(transport, endpoint, f"/json/close/{tab}")
    finally:
        await transport.aclose()


async def _ask(
    transport: httpx.AsyncHTTPTransport, endpoint: BrowserEndpoint, path: str, *, method: str = "GET"
) -> tuple[int, bytes]:
    """The status and the body of what is asked; status 0 when nobody answers."""
    url = httpx.URL(endpoint.url.rstrip("/") + path)
    headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"}
    if endpoint.token:
        headers["Authorization"] = f"Bearer {endpoint.token}"
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            response = await transport.handle_async_request(httpx.Request(method, url, headers=headers))
            try:
                body = b""
                async for chunk in cast("httpx.AsyncByteStream", response.stream):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        break
            finally:
                await response.aclose()
    except (TimeoutError, httpx.TransportError):
        return 0, b""
    return response.status_code, body


def _address(endpoint: BrowserEndpoint, body: bytes) -> str:
    """Only the path is taken from the answer: what runs in a sandbox must not choose whom we connect to."""
    told = _fields(body).get("webSocketDebuggerUrl")
    if not isinstance(told, str):
        return ""
    base = httpx.URL(endpoint.url)
    return str(base.copy_with(scheme="wss" if base.scheme == "https" else "ws", raw_path=httpx.URL(told).raw_path))


def _pages(body: bytes) -> list[str]:
    """The ids of the tabs in a list of targets."""
    try:
        parsed: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    if not isinstance(parsed, list):
        return []
    targets = [cast("dict[str, object]", each) for each in cast("list[object]", parsed) if isinstance(each, dict)]
    ids = [each.get("id") for each in targets if each.get("type") == "page"]
    return [each for each in ids if isinstance(each, str) and each.isalnum()]


def _words(body: bytes) -> str:
    message = _fields(body).get("message")
    return message if isinstance(message, str) else ""


def _fields(body: bytes) -> dict[str, object]:
    try:
        parsed: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
