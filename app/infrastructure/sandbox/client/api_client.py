"""Requests to the API of one sandbox: they carry its token, and the envelope of the response is opened."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import httpx
import orjson

from app.domain.errors import SandboxFailure, SandboxUnavailable

MAX_RESPONSE_BYTES = 32 * 1024 * 1024
"""Maximum size of a response in bytes: another program inside the sandbox may have taken its port."""

CONNECT_SECONDS = 5.0
"""Time limit in seconds for each of the two attempts to connect."""

KEEPALIVE_SECONDS = 4.0
"""Time in seconds after which an idle connection is closed.

It is less than the 5 s of uvicorn: a request that meets a closing connection fails, because it is not sent again.
"""

VIEWER = (("X-Anker-Viewer", "1"),)
"""Header of a request that a person's view causes."""

SUCCESS, UNAUTHORIZED = 200, 401

JsonObject = Mapping[str, object]


class SandboxUnreachable(SandboxUnavailable):
    """The request has not reached the sandbox."""


class SandboxApiClient:
    """A client of one sandbox's JSON API, with connections of its own; `aclose` closes them.

    It uses the transport without `httpx.AsyncClient`. A pool looks at each of its connections twice a call: that takes
    4 to 8 ms with the connections of 100 sandboxes in one pool, and 0.5 ms with a pool for each. Redirects, cookies and
    proxies of the environment must not apply here anyway.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """Initialize without connecting.

        Args:
            address: The base URL of the sandbox.
            token: The sandbox's token; "" to send none.
            transport: Replaces real connections in tests.
            connect_seconds: Time limit in seconds for each of the two attempts to connect.
        """
        self.address = address.rstrip("/")
        self.token = token
        self._base = httpx.URL(self.address + "/api/v1/")
        # Making a TLS context takes 20 ms; an http address needs none.
        verify = httpx.create_ssl_context() if address.startswith("https:") else False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEPALIVE_SECONDS)
        self._transport = transport or httpx.AsyncHTTPTransport(verify=verify, limits=limits, retries=1)
        self._headers = {
            "Host": self._base.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._extensions = {"timeout": {"connect": connect_seconds}}
        self._urls: dict[str, httpx.URL] = {}

    async def post(self, path: str, body: JsonObject, *, seconds: float, is_use: bool = True) -> JsonObject:
        """Send `POST /api/v1/<path>` and return the `data` of the response, which must come within `seconds`.

        Without `is_use`, the sandbox does not count the request as use.

        Raises:
            SandboxFailure: The sandbox refused the request, or `body` is not Unicode text.
            SandboxUnreachable: The request has not reached the sandbox.
            SandboxUnavailable: There was no response in time, or a malformed one.
        """
        try:
            content = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise SandboxFailure("The text is not valid Unicode: it holds half a surrogate pair.") from error
        return await self._send("POST", path, content, seconds, () if is_use else VIEWER)

    async def get(self, path: str, *, seconds: float) -> JsonObject:
        """Send `GET /api/v1/<path>` and return the `data` of the response; raise as `post` does."""
        return await self._send("GET", path, b"", seconds)

    async def download(self, path: str, query: Mapping[str, str], *, seconds: float) -> AsyncGenerator[bytes, None]:
        """Send `GET /api/v1/<path>` and yield the bytes of the response, each part of which must come within `seconds`.

        Raises:
            SandboxFailure: The sandbox refused the request.
            SandboxUnavailable: The response did not come in time, or broke off.
        """
        url = self._base.join(path).copy_with(params=query)
        request = httpx.Request("GET", url, headers=list(self._headers.items()), extensions=self._extensions)
        with _as_unavailable(seconds):
            async with asyncio.timeout(seconds):
                response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != SUCCESS:
                with _as_unavailable(seconds):
                    async with asyncio.timeout(seconds):
                        body = await _read(response)
                open_envelope(response.status_code, body)
                raise SandboxUnavailable(f"The sandbox's answer is malformed (HTTP {response.status_code}).")
            chunks = aiter(_stream_of(response))
            while True:
                with _as_unavailable(seconds):
                    async with asyncio.timeout(seconds):
                        chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self._transport.aclose()

    async def _send(
        self, method: str, path: str, content: bytes, seconds: float, more_headers: Sequence[tuple[str, str]] = ()
    ) -> JsonObject:
        url = self._urls.get(path) or self._urls.setdefault(path, self._base.join(path))
        headers = [*self._headers.items(), *more_headers]
        request = httpx.Request(method, url, headers=headers, content=content, extensions=self._extensions)
        with _as_unavailable(seconds):
            async with asyncio.timeout(seconds):
                response = await self._transport.handle_async_request(request)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        return open_envelope(response.status_code, body)


@contextmanager
def _as_unavailable(seconds: float) -> Generator[None, None, None]:
    """Translate the transport's exceptions."""
    try:
        yield
    except TimeoutError:
        raise SandboxUnavailable(f"The sandbox did not answer within {seconds:g} s.") from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise SandboxUnreachable("The sandbox cannot be reached: it does not run.") from error
    except httpx.TransportError as error:
        raise SandboxUnavailable("The connection to the sandbox broke before it answered.") from error


def _stream_of(response: httpx.Response) -> httpx.AsyncByteStream:
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError("an asynchronous transport must return an asynchronous stream")
    return stream


async def _read(response: httpx.Response) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in _stream_of(response):
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise SandboxUnavailable(f"The sandbox answered with more than {MAX_RESPONSE_BYTES >> 20} MiB.")
        chunks.append(chunk)
    return b"".join(chunks)


def open_envelope(status: int, body: bytes | bytearray) -> JsonObject:
    """Return the `data` of a response.

    Raises:
        SandboxFailure: The sandbox refused the request.
        SandboxUnreachable: The token was refused.
        SandboxUnavailable: The response is malformed.
    """
    if status == UNAUTHORIZED:
        # The model cannot repair this: the operator's token is wrong, or another program has the address now.
        raise SandboxUnreachable("The sandbox refused our token (SANDBOX_TOKEN).")
    try:
        envelope: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        envelope = None
    if not isinstance(envelope, dict):
        raise SandboxUnavailable(f"The sandbox's answer is malformed (HTTP {status}).")
    fields = cast("dict[str, object]", envelope)
    success, message, data = fields.get("success"), fields.get("message"), fields.get("data")
    if success is False and isinstance(message, str):
        raise SandboxFailure(message or f"The sandbox refused the request (HTTP {status}).", status=status)
    if success is True and data is None:
        return {}
    if success is not True or not isinstance(data, dict):
        raise SandboxUnavailable(f"The sandbox's answer is malformed (HTTP {status}).")
    return cast("dict[str, object]", data)
