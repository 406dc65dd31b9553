"""Probes of requests: streaming, the form of the history, prompt caching, and pictures."""

import asyncio
import base64
import struct
import zlib
from collections.abc import Sequence

from app.domain.errors import ModelFailure
from app.domain.external.llm import FailureKind, ModelRequest
from app.domain.models.message import (
    AssistantMessage,
    ProviderFields,
    SystemMessage,
    ToolCall,
    ToolMessage,
    Transcript,
    UserMessage,
)
from app.domain.models.tool import JsonObject, ToolSpec
from app.infrastructure.llm.check.calls import REPLY_TOKENS, TEMPERATURE, user
from app.infrastructure.llm.check.client import ProbeClient
from app.infrastructure.llm.check.findings import Finding, quote, reason_of
from app.infrastructure.llm.failures import ModelCallError

SLOW_TOKENS = 8.0
"""Tokens per second below which work with the agent is tedious."""

CACHE_CHARS = 5_000
"""Length of the prompt that is sent twice, in characters. Providers cache prompts from 1,024 tokens on."""

SHORT_TOKENS = 500
"""Token limit of a reply that is read to its end for its usage. Models that think need some hundred."""

PICTURE_SIZE = 128
"""Width and height of the picture, in pixels. Some models refuse smaller ones."""

_UNKNOWN: tuple[FailureKind, ...] = ("rate_limit", "overloaded", "unreachable", "timeout", "broken", "credit")
"""Failures that do not tell whether the server takes a request."""

_TWO_CALLS = "two calls in one turn"
_ID = "a1b2c3d4e"
_LONG_ID = "call_" + "0123456789" * 8


async def check_streaming(client: ProbeClient) -> Finding:
    """Return whether and how fast replies are streamed."""
    seen = await client.ask([user("Count from one to thirty in words.")], max_tokens=2 * SHORT_TOKENS)
    tokens = seen.reply.usage.completion_tokens or seen.parts
    writing = seen.last_part - seen.first_part
    # A reply that arrives within milliseconds does not tell the speed.
    speed = (tokens - 1) / writing if writing > 0.05 else None
    text = f"first token after {seen.first_part:.2f} s" + (f", {speed:.0f} tokens/s" if speed else "")
    if not seen.is_stream or seen.parts < 3 or (seen.last_part > 1 and writing < seen.last_part / 20):
        return Finding(
            probe="streaming",
            level="warning",
            text=f"the reply arrived at once, after {seen.last_part:.1f} s",
            advice="Switch off buffering in the proxy before the server. Texts appear late until then.",
            limit="replies are not streamed",
        )
    if not seen.usage_fields:
        return Finding(
            probe="streaming",
            level="warning",
            text=f"{text}; no usage in the stream",
            advice="Token counts are estimates, and costs are unknown. Use a server that takes stream_options.",
            limit="the server does not report tokens",
        )
    if speed is not None and speed < SLOW_TOKENS:
        return Finding(
            probe="streaming",
            level="warning",
            text=text,
            advice="Use a faster server or a smaller model: a task takes tens of thousands of tokens.",
            limit=f"slow, {speed:.1f} tokens/s",
        )
    return Finding(probe="streaming", level="ok", text=text)


async def check_history(client: ProbeClient, fields: ProviderFields | None) -> Finding:
    """Return whether the server takes a history with everything that runs can leave in it, as the agent sends it.

    `fields` are those of a real turn with a call, without which some servers refuse such turns.
    """
    calls = (
        ToolCall(id=_LONG_ID, name="get_temperature", arguments='{"city":"Oslo"}'),
        ToolCall(id="", name="python.run", arguments="{"),
    )
    transcript = Transcript(
        [
            SystemMessage(content="You are an agent."),
            UserMessage(content="What is the temperature in Oslo?"),
            AssistantMessage(tool_calls=calls, provider_fields=fields),
            ToolMessage(tool_call_id=_LONG_ID, content="17 degrees"),
            ToolMessage(tool_call_id="", content="There is no tool python.run."),
            UserMessage(content="Stop."),
            UserMessage(content="Now say in one word: is that warm?"),
        ]
    )
    try:
        for tools in ((TEMPERATURE,), ()):
            await client.accept(ModelRequest(transcript=transcript, tools=tools))
    except ModelFailure as failure:
        return Finding(
            probe="history",
            level="problem",
            text=f"the server refuses the form in which Anker sends the history: {reason_of(failure)}",
            advice="Correct the chat template of the server, or use another server.",
            limit="the server refuses the history of a run",
        )
    return Finding(probe="history", level="ok", text="the server takes it as Anker sends it")


async def check_strictness(client: ProbeClient, fields: ProviderFields | None) -> Finding:
    """Return which forms of a history the server refuses. Anker sends none of them, so this is only information."""
    forms = _forms(fields)
    results = await asyncio.gather(*(_is_refused(client, *form) for form in forms.values()), return_exceptions=True)
    if failure := next((result for result in results if isinstance(result, BaseException)), None):
        raise failure
    names = [name for name, is_refused in zip(forms, results, strict=True) if is_refused]
    text = f"refuses {', '.join(names)}; Anker sends none of them" if names else "the server takes every form"
    facts = {"parallel_calls": False} if _TWO_CALLS in names else {}
    return Finding(probe="strictness", level="info", text=text, facts=facts)


async def _is_refused(client: ProbeClient, messages: Sequence[JsonObject], tools: Sequence[ToolSpec]) -> bool:
    try:
        await client.ask(messages, tools=tools, max_tokens=REPLY_TOKENS, enough_chars=0, retries=0)
    except ModelCallError as failure:
        if failure.kind in _UNKNOWN:
            raise
        return True
    return False


def _forms(fields: ProviderFields | None) -> dict[str, tuple[list[JsonObject], list[ToolSpec]]]:
    """Return the messages and tools of each form, by the name under which it is reported."""

    def called(*call_ids: str, name: str = TEMPERATURE.name) -> list[JsonObject]:
        calls: list[dict[str, object]] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": '{"city":"Oslo"}'}}
            for call_id in call_ids
        ]
        turn: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": calls}
        if fields is not None:
            turn.update(fields.message)
            for call, more in zip(calls, fields.calls, strict=False):
                call.update(more)
        results = [{"role": "tool", "tool_call_id": call_id, "content": "17 degrees"} for call_id in call_ids]
        return [user("What is the temperature in Oslo?"), turn, *results]

    return {
        "user after tool": ([*called(_ID), user("Is that warm?")], [TEMPERATURE]),
        "user after user": ([user("Hello."), user("Is 17 degrees warm?")], []),
        "ids of 85 characters": (called(_LONG_ID), [TEMPERATURE]),
        "ids that have not nine characters": (called("call_1"), [TEMPERATURE]),
        "names like python.run": (called(_ID, name="python.run"), [TEMPERATURE]),
        _TWO_CALLS: (called(_ID, "b1b2c3d4e"), [TEMPERATURE]),
        "calls in the history without tools": (called(_ID), []),
    }


async def check_caching(client: ProbeClient) -> Finding:
    """Return how much of a repeated prompt the server reads from its cache."""
    text = " ".join(f"Entry {number}: nothing of note happened on that day." for number in range(1, 200))
    messages: list[JsonObject] = [{"role": "system", "content": text[:CACHE_CHARS]}, user("Say ok.")]
    await client.ask(messages, max_tokens=SHORT_TOKENS)
    seen = await client.ask(messages, max_tokens=SHORT_TOKENS)
    usage = seen.reply.usage
    if usage.cached_tokens:
        text = f"{usage.cached_tokens:,} of {usage.prompt_tokens:,} tokens of a repeated prompt came from the cache"
        return Finding(probe="prompt caching", level="ok", text=text)
    is_reported = "cache" in str(seen.usage_fields)
    text = (
        "no tokens of a repeated prompt came from the cache" if is_reported else "the server reports no cached tokens"
    )
    return Finding(probe="prompt caching", level="info", text=f"{text}: each call may cost its whole prompt")


async def check_vision(client: ProbeClient) -> Finding:
    """Return whether the model sees a picture."""
    question = "The picture has two halves. Which colour is the left half, and which the right? Reply with two words."
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    try:
        seen = await client.ask([user(content)], max_tokens=REPLY_TOKENS, enough_chars=300, retries=0)
    except ModelCallError as failure:
        if failure.kind in _UNKNOWN:
            raise
        configured = client.profile.vision
        return Finding(
            probe="vision",
            level="warning" if configured else "info",
            text=f"the server refuses pictures: {reason_of(failure)}",
            advice="Set vision = false for this profile." if configured else "",
            limit="it refuses pictures, but its profile says vision = true",
            facts={"vision": False},
        )
    written = seen.reply.content.lower()
    if 0 <= written.find("yellow") < written.find("green"):
        advice = "" if client.profile.vision else "Set vision = true for this profile, or use --save."
        return Finding(
            probe="vision", level="ok", text="the model sees pictures", advice=advice, facts={"vision": True}
        )
    text = f"the server takes pictures, but the model does not see them: {quote(seen.raw_text)}"
    return Finding(probe="vision", level="info", text=text, facts={"vision": False})


def picture() -> bytes:
    """Return a PNG whose left half is yellow and whose right half is green."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + b"\xff\xdc\x00" * (PICTURE_SIZE // 2) + b"\x00\x80\x00" * (PICTURE_SIZE // 2)
    header = struct.pack(">IIBBBBB", PICTURE_SIZE, PICTURE_SIZE, 8, 2, 0, 0, 0)
    pixels = zlib.compress(row * PICTURE_SIZE)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
