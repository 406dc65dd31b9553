"""The OpenAI SDK, as far as we use it: authentication, headers, addresses, time-outs, the connection pool, errors.

Importing this module costs 0.5 s and 25 MB; only `openai.py` does, in a thread, when the first call is near. Requests
and answers pass as bytes, with the SDK's headers over the SDK's connections, but not through its request builder: its
typed path costs 6.5 ms of CPU a call, growing with the history, its raw path 1.2 ms, this one 0.7 ms.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager

import anyio
import httpx2
import openai

from app.infrastructure.llm.failures import CallFailed, Failures

LIMITS = httpx2.Limits(max_connections=1_000, max_keepalive_connections=32, keepalive_expiry=30)
"""The pool probes every idle connection, 15 µs each, at every call: with 100 of them a call costs three times as much.
32 are enough for hundreds of sessions, whose connections are busy rather than idle."""

CONNECT_SECONDS = 10.0
FIRST_ERROR = 400

_BROKEN = (httpx2.HTTPError, httpx2.StreamError, OSError, anyio.EndOfStream, anyio.BrokenResourceError)
"""What reading a body may raise; SSL errors are OSErrors, and the anyio ones come through unmapped at times."""


class SDKClient:
    """One SDK client, with its connections, for the life of the process."""

    def __init__(
        self, *, api_key: str, base_url: str, timeout_seconds: float, failures: Failures, clock: Callable[[], float]
    ) -> None:
        """`clock` gives seconds since the epoch.

        Raises:
            CallFailed: the address or the key cannot be sent at all.
        """
        if not (api_key.isascii() and api_key.isprintable()):
            raise failures.unusable("API_KEY", "it holds characters that no key has")
        self._failures = failures
        self._clock = clock
        self._seconds = timeout_seconds
        timeout = httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, CONNECT_SECONDS))
        self._http = openai.DefaultAsyncHttpx2Client(limits=LIMITS, timeout=timeout)
        try:
            self._client = openai.AsyncOpenAI(
                api_key=api_key,
                base_url=base_url,
                timeout=timeout,
                max_retries=0,  # broken streams must be retried too, which only the caller can do
                http_client=self._http,
            )
            self._url = httpx2.URL(f"{str(self._client.base_url).rstrip('/')}/chat/completions")
        except (httpx2.InvalidURL, ValueError) as error:
            raise failures.unusable("API_BASE", "it is no address") from error
        defaults = {
            name: value
            for name, value in self._client.default_headers.items()
            # The SDK's statistics about this machine: nobody asked for them, and each header costs time in every call.
            if isinstance(value, str) and not name.lower().startswith("x-stainless-")
        }
        ours = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        self._headers = httpx2.Headers({**defaults, **self._client.auth_headers, **ours})

    async def post(self, body: bytes) -> "Answer":
        """Send a request; returns when the headers of a 200 have come. The caller closes the answer.

        Raises:
            CallFailed: no connection, silence, or a status of 400 and more.
        """
        with self._translated():
            request = self._http.build_request("POST", self._url, headers=self._headers, content=body)
            response = await self._http.send(request, stream=True)
            if response.status_code >= FIRST_ERROR:
                await self._refuse(response)
        return Answer(response, self._translated)

    async def _refuse(self, response: httpx2.Response) -> None:
        """Raise what an answer with an error status means."""
        try:
            content = await response.aread()
        finally:
            await response.aclose()
        raise self._failures.from_status(response.status_code, response.headers, content, self._clock())

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except httpx2.ConnectTimeout:
            raise self._failures.unreachable("no answer to the attempt to connect") from None
        except httpx2.TimeoutException:
            raise self._failures.silent(self._seconds) from None
        except _BROKEN as error:
            raise self._connection_failure(error) from None

    def _connection_failure(self, error: BaseException) -> CallFailed:
        causes = list(_causes(error))
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            return self._failures.unreachable("its TLS certificate cannot be verified")
        if any(isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol) for cause in causes):
            return self._failures.unreachable("refused or unknown host")
        return self._failures.broken_off()


class Answer:
    """The body of one answer, as it arrives."""

    def __init__(self, response: httpx2.Response, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._response = response
        self._translated = translated

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body's bytes, decompressed.

        Raises:
            CallFailed: silence, or the connection broke off.
        """
        with self._translated():
            async for chunk in self._response.aiter_bytes():
                yield chunk

    async def close(self) -> None:
        """Let go of the connection: back to the pool when the body was read to its end, else really closed."""
        await self._response.aclose()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
