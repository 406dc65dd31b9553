"""The wire to one sandbox: requests with its token, and the envelope that comes back."""

import asyncio
from collections.abc import Mapping
from typing import cast

import httpx
import orjson

from app.domain.errors import SandboxFailure, SandboxUnavailable

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""No sandbox answers with more; what runs inside one may have taken its port."""

CONNECT_SECONDS = 5.0
KEEPALIVE_SECONDS = 4.0
"""Shorter than the 5 s after which uvicorn closes an idle connection: a request must not meet a closing one, because
one that was sent is never sent again."""

UNAUTHORIZED = 401

JsonObject = Mapping[str, object]


def http_transport(address: str) -> httpx.AsyncHTTPTransport:
    """Connections of one link. A failed connect is tried once more: nothing was sent yet."""
    # Making a TLS context takes 20 ms; a loopback address needs none.
    verify = httpx.create_ssl_context() if address.startswith("https:") else False
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEPALIVE_SECONDS)
    return httpx.AsyncHTTPTransport(verify=verify, limits=limits, retries=1)


class SandboxApiClient:
    """Sends JSON to one sandbox and opens the envelope of its answer. Owns its transport; close it.

    Each sandbox has a transport of its own, used without `httpx.AsyncClient`: a connection pool looks at every
    connection it holds twice a call (4 to 8 ms with 100 sandboxes in one pool, 0.5 ms apart), and a client's redirects,
    cookies and environment would only be harmful here.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """`address` is the base URL, `token` "" sends none, `transport` replaces real connections in tests.

        `connect_seconds`: how long one of the two attempts to connect may take.
        """
        self.address = address.rstrip("/")
        self.token = token
        self._base = httpx.URL(self.address + "/api/v1/")
        self._transport = transport or http_transport(address)
        self._headers = {
            "Host": self._base.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._extensions = {"timeout": {"connect": connect_seconds}}
        self._urls: dict[str, httpx.URL] = {}

    async def post(self, path: str, body: JsonObject, *, seconds: float) -> JsonObject:
        """The `data` that `POST /api/v1/<path>` answers within `seconds`.

        Raises:
            SandboxFailure: an answer without success, or a `body` that is not Unicode text.
            SandboxUnavailable: no answer, none in time, one that makes no sense, or the token was refused.
        """
        try:
            content = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise SandboxFailure("The text is not valid Unicode: it holds half a surrogate pair.") from error
        return await self._ask("POST", path, content, seconds)

    async def get(self, path: str, *, seconds: float) -> JsonObject:
        """The `data` that `GET /api/v1/<path>` answers within `seconds`; raises as `post`."""
        return await self._ask("GET", path, b"", seconds)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def _ask(self, method: str, path: str, content: bytes, seconds: float) -> JsonObject:
        url = self._urls.get(path) or self._urls.setdefault(path, self._base.join(path))
        request = httpx.Request(method, url, headers=self._headers, content=content, extensions=self._extensions)
        try:
            async with asyncio.timeout(seconds):
                response = await self._transport.handle_async_request(request)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise SandboxUnavailable(f"The sandbox did not answer within {seconds:g} s.") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise SandboxUnavailable("The sandbox cannot be reached: it does not run.") from error
        except httpx.TransportError as error:
            raise SandboxUnavailable("The connection to the sandbox broke before it answered.") from error
        return _open(response.status_code, body)


async def _read(response: httpx.Response) -> bytes:
    chunks: list[bytes] = []
    size = 0
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError("an asynchronous transport answers with an asynchronous stream")
    async for chunk in stream:
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise SandboxUnavailable(f"The sandbox answered with more than {MAX_ANSWER_BYTES >> 20} MiB.")
        chunks.append(chunk)
    return b"".join(chunks)


def _open(status: int, body: bytes) -> JsonObject:
    try:
        envelope: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        envelope = None
    if not isinstance(envelope, dict):
        raise SandboxUnavailable(f"The sandbox gave an answer that makes no sense (HTTP {status}).")
    fields = cast("dict[str, object]", envelope)
    if status == UNAUTHORIZED:
        # Nothing that a model could mend: the operator's token is wrong, or another program has the port now.
        raise SandboxUnavailable("The sandbox refused our token (SANDBOX_TOKEN).")
    success, message, data = fields.get("success"), fields.get("message"), fields.get("data")
    if success is False and isinstance(message, str):
        raise SandboxFailure(message or f"The sandbox refused (HTTP {status}).", status=status)
    if success is True and data is None:
        return {}  # done, and nothing to tell
    if success is not True or not isinstance(data, dict):
        raise SandboxUnavailable(f"The sandbox gave an answer that makes no sense (HTTP {status}).")
    return cast("dict[str, object]", data)
