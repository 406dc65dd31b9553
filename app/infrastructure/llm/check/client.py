"""Requests of the model check: bodies given message by message, and what can be observed of each reply."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import cast

import orjson

from app.domain.external.llm import ModelReply, ModelRequest
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import JsonObject, ToolSpec
from app.infrastructure.llm.event_stream import EventDecoder, ReplyTooLarge
from app.infrastructure.llm.failures import FailureClassifier, ModelCallError, RetryPolicy
from app.infrastructure.llm.openai_client import OpenAIClient, ResponseBody
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.llm.refusals import learn
from app.infrastructure.llm.reply import ChunkLost, ReplyBuilder, ServerFailed, as_object
from app.infrastructure.llm.request_encoder import Dialect
from app.infrastructure.llm.wire_text import split_json

ASK_SECONDS = 45.0
"""Maximum time of one request, in seconds."""

RESERVE_SECONDS = 0.5
"""Time that requests leave for the verdict before the end of the check, in seconds."""

RETRIES = 2
"""Maximum number of times that a request is repeated."""

RATE_LIMIT_RETRIES = 6
"""The same for requests that came too fast, or while the server was busy with others of the check."""

_RETRY = RetryPolicy()
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_SERVERS = {
    "Ollama": re.compile(rb'"system_fingerprint": ?"fp_ollama"'),
    "llama.cpp": re.compile(rb'"system_fingerprint": ?"b\d+-'),
    "vLLM": re.compile(rb'"prompt_token_ids":'),
}
"""Matches a chunk of a server's program."""

JsonDict = dict[str, object]


class OutOfTime(Exception):
    """The time of the whole check is over."""


@dataclass(slots=True, kw_only=True)
class Observation:
    """One reply, and how it arrived. Times are in seconds since the request."""

    reply: ModelReply = field(default_factory=ModelReply)
    """The reply as the agent would receive it."""
    raw_text: str = ""
    """Its text as the server sent it, with all markup."""
    is_complete: bool = False
    """False if the reply was cut by the time limit, or because the probe had seen enough."""
    is_stream: bool = False
    parts: int = 0
    """Number of chunks with a part of the reply."""
    first_part: float = 0
    last_part: float = 0
    usage_fields: JsonObject = field(default_factory=dict[str, object])
    """The usage as the server reports it."""

    @property
    def visible_chars(self) -> int:
        """Length of the text without thoughts."""
        return len(_THOUGHTS.sub("", self.raw_text))

    def add(self, chunk: JsonObject, *, at: float) -> None:
        """Add one chunk of the stream, or the whole reply."""
        self.usage_fields = as_object(chunk.get("usage")) or self.usage_fields
        choices = chunk.get("choices")
        for choice in cast("list[object]", choices) if isinstance(choices, list) else ():
            delta = as_object(as_object(choice).get("delta")) or as_object(as_object(choice).get("message"))
            if isinstance(text := delta.get("content"), str):
                self.raw_text += text
            if any(value for name, value in delta.items() if name != "role"):
                self.parts += 1
                self.first_part = self.first_part or at
                self.last_part = at


class _ReplyReader:
    """Reads one response body."""

    def __init__(self, builder: ReplyBuilder, enough_chars: int | None) -> None:
        self.seen = Observation()
        self.server = ""
        """Name of the server's program, if this reply tells it."""
        self._builder = builder
        self._enough_chars = enough_chars
        self._start = time.monotonic()

    async def read(self, body: ResponseBody) -> None:
        """Read `body` until its end, or until the probe has seen enough."""
        decoder = EventDecoder()
        chunks = body.chunks()
        try:
            async for chunk in chunks:
                if any([self._feed(data) for data in decoder.feed(chunk)]):
                    self.seen.is_complete = True
                    return
                if self._has_enough:
                    return
        finally:
            await chunks.aclose()
        for data in decoder.finish():
            self._feed(data)
        self.seen.is_stream = decoder.plain_body is None
        if decoder.plain_body is not None:
            self._feed(decoder.plain_body)
        self.seen.is_complete = self.has_reply

    @property
    def has_reply(self) -> bool:
        """Whether there is a reply, though it may be empty."""
        return bool(self.seen.parts or self._builder.finish_reason)

    def finish(self) -> Observation:
        """Return what was read."""
        self.seen.reply = self._builder.finish()
        return self.seen

    @property
    def _has_enough(self) -> bool:
        enough = self._enough_chars
        return enough is not None and self.seen.parts > 0 and self.seen.visible_chars >= enough

    def _feed(self, data: bytes) -> bool:
        """Add one event and return whether it was the last one."""
        self.seen.is_stream = True
        is_last = self._builder.feed_event(data)
        self.server = self.server or next((name for name, mark in _SERVERS.items() if mark.search(data)), "")
        for value in split_json(data)[0]:
            self.seen.add(as_object(value), at=time.monotonic() - self._start)
        return is_last


class _FirstPart:
    """A `ReplyListener` that waits for the first visible part."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()

    def text(self, delta: str) -> None:
        self.arrived.set()

    def arguments(self, name: str, delta: str) -> None:
        self.arrived.set()

    def restart(self) -> None:
        pass

    def waiting(self, text: str, retry_in: float | None) -> None:
        pass


class ProbeClient:
    """Sends the requests of all probes until the time of the check is over, one at a time until `widen` is called."""

    def __init__(
        self,
        *,
        client: OpenAIClient,
        failures: FailureClassifier,
        model: OpenAIModel,
        temperature: float | None,
        seconds: float,
    ) -> None:
        """Start the clock of the check.

        Args:
            client: Transport.
            failures: Turns errors inside a stream into `ModelCallError`.
            model: The model as the agent uses it.
            temperature: Sampling temperature; None for a model that takes none.
            seconds: Maximum time of all requests together.
        """
        self._client = client
        self._failures = failures
        self._model = model
        self._temperature = temperature
        self._dialect = Dialect(temperature=temperature is not None)
        self._end = time.monotonic() + seconds - RESERVE_SECONDS
        self._slots = asyncio.Semaphore(1)
        self._rng = Random(0)  # noqa: S311 - jitter
        self.server = ""
        """Name of the server's program; empty if it is unknown."""

    @property
    def profile(self) -> ModelProfile:
        """The profile that is checked."""
        return self._model.profile

    @property
    def remaining(self) -> float:
        """Seconds until the last request must have ended."""
        return self._end - time.monotonic()

    @property
    def refuses_temperature(self) -> bool:
        """Whether the server refused the temperature."""
        return self._temperature is not None and not self._dialect.temperature

    @property
    def output_limit(self) -> int | None:
        """Largest token limit that the server takes; None if it refused none."""
        return self._dialect.output_limit

    def widen(self, slots: int) -> None:
        """Allow `slots` more requests at the same time."""
        for _ in range(slots):
            self._slots.release()

    async def accept(self, request: ModelRequest, *, seconds: float = ASK_SECONDS) -> None:
        """Send a request exactly as the agent's are, and wait for the first visible part of the reply.

        Raises:
            ModelFailure: The model failed.
            OutOfTime: The time of the check is over.
            TimeoutError: No reply within `seconds`.
        """
        listener = _FirstPart()
        async with self._slots, asyncio.timeout(self._limit(seconds)):
            call = asyncio.create_task(self._model.complete(request, listener=listener))
            part = asyncio.create_task(listener.arrived.wait())
            try:
                await asyncio.wait((call, part), return_when=asyncio.FIRST_COMPLETED)
                if call.done():
                    call.result()
            finally:
                call.cancel()
                part.cancel()
                await asyncio.gather(call, part, return_exceptions=True)

    async def ask(
        self,
        messages: Sequence[JsonObject],
        *,
        tools: Sequence[ToolSpec] = (),
        max_tokens: int,
        enough_chars: int | None = None,
        seconds: float = ASK_SECONDS,
        retries: int = RETRIES,
    ) -> Observation:
        """Return the reply to messages that are sent as they are.

        Args:
            messages: Messages in wire format.
            tools: Tools on offer.
            max_tokens: Maximum length of the reply in tokens.
            enough_chars: Number of characters of text, without thoughts, after which to stop reading; 0 for any part.
            seconds: Time after which to stop reading.
            retries: Maximum number of times to repeat a request that failed for now, except for a rate limit.

        Raises:
            ModelCallError: The request failed.
            OutOfTime: The time of the check is over.
            TimeoutError: No part of the reply arrived in time.
        """
        wire_tools = [{"type": "function", "function": asdict(spec)} for spec in tools]
        async with self._slots:
            attempt = 0
            while True:
                dialect = self._dialect
                limit = min(max_tokens, dialect.output_limit or max_tokens)
                body = self._parameters(limit) | ({"tools": wire_tools} if tools else {}) | {"messages": messages}
                builder = ReplyBuilder(tools=tools, source=self.profile.identity)
                try:
                    return await self._attempt(
                        orjson.dumps(body), _ReplyReader(builder, enough_chars), self._limit(seconds)
                    )
                except ModelCallError as failure:
                    learnt = learn(failure, sent=dialect, known=self._dialect, limit=limit)
                    if learnt is not None:
                        self._dialect = learnt
                        continue
                    delay = _RETRY.delay(attempt, failure.retry_after, self._rng)
                    most = RATE_LIMIT_RETRIES if failure.kind == "rate_limit" else retries
                    if not failure.waiting or attempt >= most or delay > self.remaining:
                        raise
                await asyncio.sleep(delay)
                attempt += 1

    def _limit(self, seconds: float) -> float:
        if self.remaining <= 0:
            raise OutOfTime
        return min(seconds, self.remaining)

    def _parameters(self, limit: int) -> JsonDict:
        dialect = self._dialect
        values: JsonDict = {"model": self.profile.model, "stream": True}
        if dialect.usage_in_stream:
            values["stream_options"] = {"include_usage": True}
        if dialect.temperature:
            values["temperature"] = self._temperature
        return values | {"max_completion_tokens" if dialect.completion_limit else "max_tokens": limit}

    async def _attempt(self, body: bytes, reader: _ReplyReader, seconds: float) -> Observation:
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.post(body)
                try:
                    await reader.read(response)
                finally:
                    await response.close()
        except TimeoutError:
            if not reader.seen.parts:
                raise
        except ServerFailed as failed:
            raise self._failures.from_stream(failed.report, now=time.time()) from None
        except ChunkLost:
            raise self._failures.broken_off() from None
        except ReplyTooLarge:
            raise self._failures.too_large() from None
        self.server = self.server or reader.server
        if not reader.has_reply:
            raise self._failures.broken_off()
        return reader.finish()
