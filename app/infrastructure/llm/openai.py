"""The `LLM` port over the OpenAI SDK, for any server with a compatible `/chat/completions`."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson

from app.domain.errors import ModelFailure
from app.domain.external.llm import ModelReply, ModelRequest, ReplyListener
from app.infrastructure.llm.assembly import BrokenReply, ReplyBuilder
from app.infrastructure.llm.encoding import Dialect, RequestEncoder
from app.infrastructure.llm.failures import CallFailed, Failures
from app.infrastructure.llm.retry import RetryPolicy, Uniform, system_rng
from app.infrastructure.llm.sse import AnswerTooLarge, EventDecoder

if TYPE_CHECKING:
    from app.infrastructure.llm.sdk import Answer, SDKClient

log = logging.getLogger(__name__)

DONE = b"[DONE]"
TAIL_SECONDS = 0.5
"""How long to wait for the end of a body after `[DONE]`, so that its connection can be used again."""
COMMENT_PATIENCE = 5
"""How many time-outs a server may keep a stream alive with comments alone, as gateways do while a model loads."""
USAGE_SECONDS = 5.0
"""How long to wait for usage and `[DONE]` once the model has said that it is finished."""
_UNSUPPORTED = ("unsupported", "not support", "only the default", "not permitted", "not allowed", "deprecated")


class OpenAIModel:
    """A model behind an OpenAI-compatible server. One for the life of the process; calls may run side by side.

    Answers are always streamed. Retries are ours, not the SDK's, so that a stream that breaks off is retried as well.
    What the server does not take (`stream_options`, `temperature`, `max_tokens`) is learnt from its first refusal.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        model: str,
        temperature: float = 0.7,
        max_tokens: int = 2_000,
        timeout_seconds: float = 120,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Uniform | None = None,
    ) -> None:
        """`timeout_seconds` bounds the server's silence: before its answer, and between two pieces of it.

        `clock` gives seconds since the epoch; it, `sleep` and `rng` are replaced in tests only.
        """
        self._api_key = api_key.strip()
        self._base_url = base_url
        self._timeout = timeout_seconds
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or system_rng()
        self._failures = Failures(base_url=base_url, model=model, api_key=self._api_key)
        self._encoder = RequestEncoder(model=model, temperature=temperature, max_tokens=max_tokens)
        self._dialect: Dialect = Dialect()
        self._opening: Future[SDKClient] | None = None
        self._closed = False

    def warm_up(self) -> None:
        """Begin to load the SDK, in a thread. Returns at once; without it the first call does the same and waits."""
        if self._opening is None:
            self._opening = Future()
            # Marked as running, so that a caller who is cancelled while it waits does not cancel it for all.
            self._opening.set_running_or_notify_cancel()
            threading.Thread(target=self._open, args=(self._opening,), name="openai-import", daemon=True).start()

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """The model's next turn, see the port."""
        attempt = 0
        while True:
            builder = ReplyBuilder(listener)
            dialect = self._dialect
            try:
                if self._closed:
                    raise self._failures.closed()
                client = await self._client()
                return await self._ask(client, self._encoder.encode(request, dialect), builder)
            except CallFailed as failure:
                if self._learn(failure, dialect):
                    continue
                delay = self._delay(failure, attempt)
                log.warning(
                    "model call failed, retrying",
                    extra={"attempt": attempt + 1, "status": failure.status, "seconds": delay},
                )
            if builder.heard and listener is not None:
                listener.restart()
            await self._sleep(delay)
            attempt += 1

    async def close(self) -> None:
        """Give back connections; a call under way fails, and so does every later one."""
        self._closed = True
        if self._opening is not None:
            try:
                client = await self._client()
            except CallFailed:
                return  # it never opened
            await client.close()

    def _open(self, opening: "Future[SDKClient]") -> None:
        try:
            from app.infrastructure.llm.sdk import SDKClient

            client = SDKClient(
                api_key=self._api_key,
                base_url=self._base_url,
                timeout_seconds=self._timeout,
                failures=self._failures,
                clock=self._clock,
            )
        except BaseException as error:  # a thread's root: whoever waits for the future must hear of it
            opening.set_exception(error)
        else:
            opening.set_result(client)

    async def _client(self) -> "SDKClient":
        """The one client, loaded when need be.

        Raises:
            CallFailed: the address or the key cannot be used.
        """
        self.warm_up()
        assert self._opening is not None  # noqa: S101 - for the type checker
        return self._opening.result() if self._opening.done() else await asyncio.wrap_future(self._opening)

    async def _ask(self, client: "SDKClient", body: bytes, builder: ReplyBuilder) -> ModelReply:
        answer = await client.post(body)
        try:
            is_complete = await self._read(answer, builder)
        except BrokenReply as broken:
            raise self._failures.in_stream(broken.error) from None
        except orjson.JSONDecodeError:
            raise self._failures.broken_off() from None
        except AnswerTooLarge:
            raise self._failures.too_large() from None
        finally:
            # On a cancellation too: this is what tells the provider to stop writing.
            await answer.close()
        if not is_complete:
            raise self._failures.broken_off()
        return builder.reply

    async def _read(self, answer: "Answer", builder: ReplyBuilder) -> bool:
        """Read `answer` into `builder`; whether it came to its proper end."""
        decoder = EventDecoder()
        chunks = answer.chunks()
        done = False
        try:
            async with asyncio.timeout(None) as limit:
                heard = time.monotonic()
                async for chunk in chunks:
                    events = list(decoder.feed(chunk))
                    heard = time.monotonic() if events or decoder.body is not None else heard
                    if time.monotonic() - heard > self._timeout * COMMENT_PATIENCE:
                        raise self._failures.silent(self._timeout * COMMENT_PATIENCE)
                    for data in events:
                        done = done or _take(data, builder)
                    if done or builder.finish:
                        wait = TAIL_SECONDS if done else USAGE_SECONDS
                        limit.reschedule(asyncio.get_running_loop().time() + wait)
            for data in decoder.finish():
                done = done or _take(data, builder)
        except (CallFailed, TimeoutError):
            # What breaks after the model has finished takes nothing away from its turn.
            if not (done or builder.finish):
                raise
        finally:
            await chunks.aclose()
        if not done and decoder.body is not None:
            self._take_whole(decoder.body, builder)
        return done or bool(builder.finish)

    def _take_whole(self, body: bytes, builder: ReplyBuilder) -> None:
        """A body that is no event stream: the whole answer as JSON, or something else entirely."""
        text = body.strip()
        if not text:
            return
        try:
            value: object = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise self._failures.broken_off() if text.startswith(b"{") else self._failures.not_an_api() from None
        if not isinstance(value, dict) or not ("choices" in value or "error" in value):
            raise self._failures.not_an_api()
        builder.feed(value)  # pyright: ignore[reportUnknownArgumentType] - any JSON
        builder.finish = builder.finish or "stop"

    def _learn(self, failure: CallFailed, sent: Dialect) -> bool:
        """Whether the server only disliked a parameter that we can do without; remembered for all further calls."""
        if failure.status not in (400, 422):
            return False
        said, known = failure.said, self._dialect
        if sent.usage_in_stream and "stream_options" in said:
            self._dialect = replace(known, usage_in_stream=False)
        elif not sent.completion_limit and "max_completion_tokens" in said:
            self._dialect = replace(known, completion_limit=True)
        elif sent.temperature and "temperature" in said and any(word in said for word in _UNSUPPORTED):
            self._dialect = replace(known, temperature=False)
        else:
            return False
        log.info("the model's server does not take a parameter; from now on requests go without it")
        return True

    def _delay(self, failure: CallFailed, attempt: int) -> float:
        """The seconds to wait before asking again.

        Raises:
            ModelFailure: asking again is of no use.
        """
        if not failure.retry:
            raise ModelFailure(str(failure)) from None
        after = failure.retry_after
        if after is not None and after > self._retry.longest_retry_after:
            raise ModelFailure(f"{failure} It wants no request for {after:.0f} seconds.") from None
        if attempt >= self._retry.retries:
            tried = f" (Tried {attempt + 1} times.)" if attempt else ""
            raise ModelFailure(f"{failure}{tried}") from None
        return self._retry.delay(attempt, after, self._rng)


def _take(data: bytes, builder: ReplyBuilder) -> bool:
    """Feed one event to `builder`; whether it was the closing one."""
    if data == DONE:
        return True
    builder.feed(orjson.loads(data) if data else {})
    return False
