"""The `LLM` port over the OpenAI SDK, for any server with a compatible `/chat/completions`."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from random import Random, SystemRandom
from typing import TYPE_CHECKING, cast

from app.domain.external.llm import ModelObserver, ModelReply, ModelRequest, ReplyListener
from app.domain.models.model_profile import ModelProfile
from app.infrastructure.llm.addresses import public_address
from app.infrastructure.llm.event_stream import EventDecoder, ReplyTooLarge
from app.infrastructure.llm.failures import FailureClassifier, ModelCallError, Patience, RetryPolicy
from app.infrastructure.llm.refusals import learn
from app.infrastructure.llm.reply import ChunkLost, ReplyBuilder, ServerFailed
from app.infrastructure.llm.request_encoder import Dialect, RequestEncoder
from app.infrastructure.llm.wire_text import split_json

if TYPE_CHECKING:
    from app.infrastructure.llm.openai_client import OpenAIClient, ResponseBody

log = logging.getLogger(__name__)

DONE_TAIL_SECONDS = 0.5
"""Maximum wait for the end of a body after `[DONE]`, so that its connection can be reused, in seconds."""

COMMENT_TIMEOUTS = 5
"""Number of timeouts for which a server may send only comments, as gateways do while a model loads."""

USAGE_SECONDS = 5.0
"""Maximum wait for usage and `[DONE]` after the model's `finish_reason`, in seconds."""

MALFORMED_RETRIES = 4
"""Maximum number of retries of replies that are no valid JSON."""


@dataclass(slots=True)
class _Progress:
    """Times of one attempt, in seconds of the monotonic clock."""

    start: float
    first_event_at: float | None = None
    """Time of the first part of the reply."""


class OpenAIModel:
    """A model behind an OpenAI-compatible server. Calls may run concurrently.

    Replies are always streamed. This class retries, not the SDK, so that a stream that breaks off is retried too. It
    learns from refusals which parameters its server does not take, and leaves them out from then on.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        model: str,
        temperature: float | None = 0.7,
        max_tokens: int = 2_000,
        profile: ModelProfile | None = None,
        thinking_replay: bool = True,
        observer: ModelObserver | None = None,
        in_file: bool = False,
        timeout_seconds: float = 120,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Random | None = None,
    ) -> None:
        """Create the model without loading the SDK.

        Args:
            api_key: Key sent as a bearer token.
            base_url: Address of the API, usually ending in `/v1`.
            model: Name of the model.
            temperature: Sampling temperature; None for a model that takes none.
            max_tokens: Maximum number of tokens of one reply.
            profile: What the agent must know of the model; None for the profile `default` with the values above.
            thinking_replay: Whether the server takes back the fields that it added to its own turns.
            observer: Counts the calls, for metrics.
            in_file: Whether the profile is from `MODELS_CONFIG`. Errors name the keys of that file then.
            timeout_seconds: Maximum silence of the server, before its reply and between two parts of it.
            retry: When and how often to retry.
            clock: Returns seconds since the epoch. Tests replace it.
            timer: Returns the seconds of a clock that is never set. Tests replace it.
            sleep: Waits between attempts. Tests replace it.
            rng: Source of the jitter. Tests replace it.
        """
        self._profile = profile or ModelProfile(
            model=model,
            identity=f"{model} at {public_address(base_url)}",
            max_tokens=max_tokens,
            output_limit=max_tokens,
        )
        self._observer = observer
        self._api_key = api_key.strip()
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._timer = timer
        self._sleep = sleep
        self._rng = rng or SystemRandom()
        self._failures = FailureClassifier(
            base_url=base_url,
            model=model,
            api_key=self._api_key,
            profile=self._profile.name if in_file else "",
        )
        self._encoder = RequestEncoder(profile=self._profile, temperature=temperature or 0)
        self._dialect: Dialect = Dialect(
            temperature=temperature is not None, provider_fields=thinking_replay, pictures=self._profile.vision
        )
        self._is_thinking = False
        self._loading: Future[OpenAIClient] | None = None
        self._closed = False

    @property
    def profile(self) -> ModelProfile:
        """Implement `LLM.profile`."""
        return self._profile

    def warm_up(self) -> None:
        """Start to load the SDK in a thread and return at once. The first call does the same and waits for it."""
        if self._loading is None:
            self._loading = Future()
            # A running future cannot be cancelled: one cancelled caller must not cancel the load for the others.
            self._loading.set_running_or_notify_cancel()
            threading.Thread(target=self._load, args=(self._loading,), name="openai-import", daemon=True).start()

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """Implement `LLM.complete`."""
        patience = Patience(self._retry, self._rng, self._timer)
        while True:
            builder = ReplyBuilder(
                listener, tools=request.tools, source=self._profile.identity, is_thinking=self._is_thinking
            )
            progress = _Progress(time.monotonic())
            dialect = self._dialect
            try:
                if self._closed:
                    raise self._failures.closed()
                client = await self._client()
                return await self._call(client, self._encoder.encode(request, dialect), builder, progress)
            except ModelCallError as failure:
                if builder.listener_called and listener is not None:
                    listener.restart()  # also before a final failure: the caller may ask again
                if self._learn(failure, request, dialect):
                    continue
                if self._observer is not None:
                    self._observer.failed(failure.kind)
                log.warning(
                    "model call failed",
                    extra={
                        "kind": failure.kind,
                        "status": failure.status,
                        "server": public_address(self._base_url),
                        "error": failure.log_text,
                    },
                )
                delay = patience.delay_after(failure, in_reply=progress.first_event_at is not None)
                reason = failure.waiting
            if listener is not None:
                listener.waiting(reason, round(delay, 1))
            await self._sleep(delay)

    async def close(self) -> None:
        """Close all connections. Calls in flight fail, and so do later ones."""
        self._closed = True
        if self._loading is not None:
            try:
                client = await self._client()
            except ModelCallError:
                return  # the client was never created
            await client.close()

    def _load(self, loading: "Future[OpenAIClient]") -> None:
        try:
            from app.infrastructure.llm.openai_client import OpenAIClient

            client = OpenAIClient(
                api_key=self._api_key,
                base_url=self._base_url,
                timeout_seconds=self._timeout_seconds,
                failures=self._failures,
                clock=self._clock,
            )
        except BaseException as error:  # the root of a thread: the callers that wait must get the error
            loading.set_exception(error)
        else:
            loading.set_result(client)

    async def _client(self) -> "OpenAIClient":
        """Return the client, loading it first if necessary.

        Raises:
            ModelCallError: The address or the key cannot be used.
        """
        self.warm_up()
        assert self._loading is not None  # noqa: S101 - for the type checker
        return self._loading.result() if self._loading.done() else await asyncio.wrap_future(self._loading)

    async def _call(
        self, client: "OpenAIClient", request_body: bytes, builder: ReplyBuilder, progress: _Progress
    ) -> ModelReply:
        body = await client.post(request_body)
        try:
            is_complete = await self._read(body, builder, progress)
        except ServerFailed as failed:
            raise self._failures.from_stream(failed.report, now=self._clock()) from None
        except ChunkLost:
            raise self._failures.broken_off(retries=MALFORMED_RETRIES) from None
        except ReplyTooLarge:
            raise self._failures.too_large() from None
        finally:
            # Also on cancellation: closing the connection tells the provider to stop generating.
            await body.close()
        if not is_complete:
            raise self._failures.broken_off()
        reply = builder.finish()
        # A template that opens the thinking in the prompt does so every time: hold it back from the listener.
        self._is_thinking = builder.was_thinking
        if self._observer is not None:
            if progress.first_event_at is not None:
                self._observer.first_token(progress.first_event_at - progress.start)
            self._observer.replied(reply.usage)
        return reply

    async def _read(self, body: "ResponseBody", builder: ReplyBuilder, progress: _Progress) -> bool:
        """Read `body` into `builder` and return whether the reply is complete."""
        decoder = EventDecoder()
        chunks = body.chunks()
        done = False
        try:
            async with asyncio.timeout(None) as deadline:
                last_event_at = time.monotonic()
                async for chunk in chunks:
                    events = list(decoder.feed(chunk))
                    if events or decoder.plain_body is not None:
                        last_event_at = time.monotonic()
                    elif time.monotonic() - last_event_at > self._timeout_seconds * COMMENT_TIMEOUTS:
                        raise self._failures.timed_out(self._timeout_seconds * COMMENT_TIMEOUTS)
                    for data in events:
                        done = done or builder.feed_event(data)
                        progress.first_event_at = progress.first_event_at or last_event_at
                    if done or builder.finish_reason:
                        wait = DONE_TAIL_SECONDS if done else USAGE_SECONDS
                        deadline.reschedule(asyncio.get_running_loop().time() + wait)
            for data in decoder.finish():
                done = done or builder.feed_event(data)
        except (ModelCallError, TimeoutError):
            # A failure after the model has finished does not invalidate its reply.
            if not (done or builder.finish_reason):
                raise
        finally:
            await chunks.aclose()
        self._read_plain(decoder.plain_body or b"", builder)
        return builder.is_complete(done=done)

    def _read_plain(self, body: bytes, builder: ReplyBuilder) -> None:
        """Read a body that is not an event stream: one JSON reply, or something that is not a model's reply."""
        text = body.strip()
        if not text:
            return
        values, rest = split_json(text)
        if rest:
            raise self._failures.broken_off() if text.startswith(b"{") else self._failures.not_an_api()
        # Google wraps its errors in a list.
        lists = (cast("list[object]", value) if isinstance(value, list) else [value] for value in values)
        for value in chain.from_iterable(lists):
            builder.feed(value)
            if not isinstance(value, dict) or "choices" not in value:
                raise self._failures.not_an_api()
        builder.finish_reason = builder.finish_reason or "stop"

    def _learn(self, failure: ModelCallError, request: ModelRequest, sent: Dialect) -> bool:
        """Leave out what the server refused, in all later calls, and return whether it refused a parameter."""
        limit = request.max_tokens or self._profile.max_tokens
        limit = min(limit, sent.output_limit or limit)
        learnt = learn(failure, sent=sent, known=self._dialect, limit=limit)
        if learnt is None:
            return False
        if self._observer is not None:
            self._observer.failed("parameter")
        if learnt != self._dialect:
            log.info("later requests heed a refusal of the model's server", extra={"refusal": str(failure)})
            self._dialect = learnt
            most = min(self._profile.output_limit, learnt.output_limit or self._profile.output_limit)
            self._profile = replace(
                self._profile,
                output_limit=most,
                max_tokens=min(most, self._profile.max_tokens),
                vision=learnt.pictures,
            )
        return True
