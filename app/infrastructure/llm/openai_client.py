"""The OpenAI SDK as a transport: authentication, headers, addresses, timeouts, connections and error classes.

Importing this module takes 0.5 s and 25 MB, so only `openai_model` imports it, in a thread, before the first call.

Requests go through the SDK's documented `client.post` with a body that is encoded already. The typed
`chat.completions.create` walks the whole history on every call and takes time that grows with it.
"""

import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import parse_qsl, urlsplit

import anyio
import httpx2
import openai

from app.infrastructure.llm.failures import FEW_RETRIES, FailureClassifier, ModelCallError

LIMITS = httpx2.Limits(max_connections=1_000, max_keepalive_connections=32, keepalive_expiry=30)
"""Limits of the connection pool. The pool checks every idle connection at every call, 15 µs each, so few are kept."""

CONNECT_SECONDS = 10.0
"""Maximum time to establish a connection, in seconds."""

_BODY_ERRORS = (httpx2.HTTPError, httpx2.StreamError, OSError, anyio.EndOfStream, anyio.BrokenResourceError)
"""Exceptions that reading a body raises. TLS errors are OSErrors; anyio's errors sometimes arrive unmapped."""

_ENDPOINT = "/chat/completions"
_HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}

_MAX_CAUSES = 10
"""Maximum length of an exception chain to search for the cause of a failure."""


class OpenAIClient:
    """One SDK client with its connections, for the lifetime of the process."""

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        timeout_seconds: float,
        failures: FailureClassifier,
        clock: Callable[[], float],
    ) -> None:
        """Create the client without connecting.

        Args:
            api_key: Key sent as a bearer token.
            base_url: Address of the API, usually ending in `/v1`. A query is sent with every request.
            timeout_seconds: Maximum silence of the server.
            failures: Turns errors into `ModelCallError`.
            clock: Returns seconds since the epoch.

        Raises:
            ModelCallError: The address or the key cannot be sent.
        """
        if not (api_key.isascii() and api_key.isprintable()):
            raise failures.unusable_setting("API_KEY", "it contains characters that cannot be sent")
        self._failures = failures
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        timeout = httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, CONNECT_SECONDS))
        address = urlsplit(base_url.strip())
        # Many people copy the address of the whole endpoint.
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        path = address.path.rstrip("/").removesuffix(_ENDPOINT)
        try:
            self._client = openai.AsyncOpenAI(
                api_key=api_key,
                base_url=address._replace(path=path, query="", fragment="").geturl(),
                default_query=query,
                # Azure, which versions its API in the query, takes the key in a header of its own.
                default_headers={"api-key": api_key} if "api-version" in query else None,
                timeout=timeout,
                max_retries=0,  # OpenAIModel retries, because it must also retry a stream that breaks off
                http_client=openai.DefaultAsyncHttpx2Client(limits=LIMITS, timeout=timeout),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise failures.unusable_setting("API_BASE", "it is not a valid address") from error

    async def post(self, body: bytes) -> "ResponseBody":
        """Send a chat completion request and return once the headers of a 200 have arrived.

        The caller closes the returned body.

        Raises:
            ModelCallError: No connection, a timeout, or a status of 400 or more.
        """
        with self._errors_translated():
            try:
                response = await self._client.post(
                    _ENDPOINT,
                    cast_to=httpx2.Response,
                    content=body,
                    options={"headers": _HEADERS},
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
            except openai.APIStatusError as error:
                answer = error.response
                raise self._failures.from_status(
                    answer.status_code, answer.headers, answer.content, now=self._clock()
                ) from None
        if not isinstance(response, httpx2.Response):
            raise TypeError(f"the SDK returned {type(response).__name__} instead of the response")
        return ResponseBody(response, self._errors_translated)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    @contextmanager
    def _errors_translated(self) -> Generator[None]:
        try:
            yield
        except (openai.APIConnectionError, *_BODY_ERRORS) as error:
            raise self._classify(list(_causes(error))) from None

    def _classify(self, causes: list[BaseException]) -> ModelCallError:
        def has(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if has(httpx2.ConnectTimeout):
            return self._failures.unreachable("the connection attempt timed out")
        if has(httpx2.TimeoutException):
            return self._failures.timed_out(self._timeout_seconds)
        if has(ssl.SSLCertVerificationError):
            return self._failures.unreachable("its TLS certificate cannot be verified", retries=FEW_RETRIES)
        if has(socket.gaierror):
            return self._failures.unreachable("unknown host", retries=FEW_RETRIES)
        if has(httpx2.UnsupportedProtocol):
            return self._failures.unusable_setting("API_BASE", "it must begin with http:// or https://")
        if has(httpx2.ConnectError):
            return self._failures.unreachable("connection refused" if has(ConnectionRefusedError) else "no route")
        return self._failures.broken_off()


class ResponseBody:
    """The body of one response, read while it arrives."""

    def __init__(
        self, response: httpx2.Response, errors_translated: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._response = response
        self._errors_translated = errors_translated

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the decompressed bytes of the body.

        Raises:
            ModelCallError: A timeout, or the connection broke off.
        """
        with self._errors_translated():
            async for chunk in self._response.aiter_bytes():
                yield chunk

    async def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, otherwise by closing it."""
        await self._response.aclose()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
