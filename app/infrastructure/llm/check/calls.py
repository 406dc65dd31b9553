"""Probes of tool calls: one call and its result, reasoning, several calls in one turn, and long arguments."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from app.domain.models.message import ToolCall
from app.domain.models.tool import JsonObject, ToolSpec
from app.infrastructure.llm.check.client import JsonDict, Observation, ProbeClient
from app.infrastructure.llm.check.findings import FactValue, Finding, quote, reason_of
from app.infrastructure.llm.failures import ModelCallError

REPLY_TOKENS = 1_500
"""Token limit of a short reply. It leaves room for thoughts."""

PROSE_CHARS = 600
"""Number of characters of text after which no call is expected any more."""

LONG_LINES = 120
LONG_CHARS = 5_000
"""Number of lines to ask for, and the length from which arguments count as long."""

LONG_TOKENS = 4_000
"""Token limit of the reply with long arguments."""

STATION = "heron-4821"
"""A word in the result of the call that the model cannot guess."""


def user(content: object) -> JsonObject:
    """Return a user message in wire format."""
    return {"role": "user", "content": content}


SYSTEM: JsonObject = {"role": "system", "content": "You are an agent. Use the tools; do not explain."}


def _tool(name: str, description: str, *parameters: str) -> ToolSpec:
    """Return a tool whose parameters are required strings."""
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string"} for parameter in parameters},
        "required": list(parameters),
    }
    return ToolSpec(name=name, description=description, parameters=schema)


TEMPERATURE = _tool("get_temperature", "Return the temperature in a city and the station that measured it.", "city")
WRITE_FILE = _tool("write_file", "Write a text file.", "path", "content")

PARSER_ADVICE = {
    "vLLM": "Start vLLM with --enable-auto-tool-choice --tool-call-parser PARSER (the parser of the model's family).",
    "llama.cpp": "Start llama-server with --jinja, and with --chat-template-file if the model's template has no tools.",
    "Ollama": "Use a model that Ollama lists with the capability “tools” (ollama show MODEL).",
    "": (
        "Switch on the server's tool-call parser: vLLM --enable-auto-tool-choice --tool-call-parser PARSER, "
        "SGLang --tool-call-parser PARSER, llama.cpp --jinja; or use another model."
    ),
}
"""How to make a server return tool calls as such, by its program."""


@dataclass(frozen=True, slots=True)
class FirstCall:
    """The reply to the first probe of tool calls, and the messages before it."""

    finding: Finding
    messages: Sequence[JsonObject]
    seen: Observation
    call: ToolCall


async def check_calls(client: ProbeClient) -> FirstCall | Finding:
    """Return the model's first call; only the finding if it makes none."""
    messages = [SYSTEM, {"role": "user", "content": "What is the temperature in Oslo, and which station measured it?"}]
    seen = Observation()
    for _ in range(2):  # sampling can fail once
        try:
            seen = await client.ask(messages, tools=[TEMPERATURE], max_tokens=REPLY_TOKENS, enough_chars=PROSE_CHARS)
        except ModelCallError as failure:
            if failure.waiting:
                raise
            return _no_calls(f"the server refuses tools: {reason_of(failure)}", client.server)
        if calls := seen.reply.tool_calls:
            return FirstCall(_call_finding(seen, calls[0], client.server), messages, seen, calls[0])
    written = quote(seen.raw_text)
    if "get_temperature" in seen.raw_text and "Oslo" in seen.raw_text:
        text = f"calls arrive as text, in a form that is not understood: {written}"
        return _no_calls(text, client.server)
    return _no_calls(f"the model made no call; it wrote {written}", client.server)


def _no_calls(text: str, server: str) -> Finding:
    return Finding(
        probe="tool calls", level="problem", text=text, advice=PARSER_ADVICE[server], limit="it makes no tool calls"
    )


def _call_finding(seen: Observation, call: ToolCall, server: str) -> Finding:
    if not _is_valid(call):
        return Finding(
            probe="tool calls",
            level="warning",
            text=f"the model made a faulty call: {quote(f'{call.name}({call.arguments})')}",
            advice="Expect corrections and failed steps. Use a model that is better at tool calls.",
            limit="faulty tool calls",
        )
    if seen.reply.text_calls:
        return Finding(
            probe="tool calls",
            level="warning",
            text="calls arrive as text; Anker understands this form, but less reliably than native calls",
            advice=PARSER_ADVICE[server],
            limit="tool calls arrive as text",
        )
    return Finding(probe="tool calls", level="ok", text="native")


def _is_valid(call: ToolCall) -> bool:
    """Return whether a call fits the tool; which city it names is a matter of the model's quality."""
    return call.name == TEMPERATURE.name and isinstance(parse_arguments(call).get("city"), str)


def parse_arguments(call: ToolCall) -> Mapping[str, object]:
    """Return the arguments of `call`; empty if they are no JSON object."""
    try:
        value: object = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


async def check_results(client: ProbeClient, first: FirstCall) -> list[Finding]:
    """Return whether the model reads the result of its call, and how reasoning goes back to the server."""
    fields = first.seen.reply.provider_fields
    plain = await _answer(client, first, with_fields=False)
    if fields is None:
        is_text = "<think" in first.seen.raw_text
        text = "thoughts are in the text; Anker hides them" if is_text else "the server sends none, and no signatures"
        return [_result_finding(plain), Finding(probe="reasoning", level="info", text=text)]
    replayed = await _answer(client, first, with_fields=True)
    names = ", ".join(sorted({*fields.message, *(name for call in fields.calls for name in call)}))
    best = replayed if isinstance(replayed, Observation) else plain
    return [_result_finding(best), _reasoning_finding(names, plain, replayed)]


async def _answer(client: ProbeClient, first: FirstCall, *, with_fields: bool) -> Observation | ModelCallError:
    """Return the reply to the result of the call, or the server's refusal."""
    reply = first.seen.reply
    call_id = "a1b2c3d4e"  # an id that every server takes
    call: JsonDict = {
        "id": call_id,
        "type": "function",
        "function": {"name": first.call.name, "arguments": orjson.dumps(parse_arguments(first.call)).decode()},
    }
    turn: JsonDict = {"role": "assistant", "content": reply.content or None, "tool_calls": [call]}
    if with_fields and reply.provider_fields is not None:
        turn.update(reply.provider_fields.message)
        for fields in reply.provider_fields.calls[:1]:
            call.update(fields)
    result = {"role": "tool", "tool_call_id": call_id, "content": f"17 degrees, measured by the station {STATION}."}
    try:
        return await client.ask(
            [*first.messages, turn, result], tools=[TEMPERATURE], max_tokens=REPLY_TOKENS, enough_chars=PROSE_CHARS
        )
    except ModelCallError as failure:
        if failure.waiting:
            raise
        return failure


def _result_finding(answer: Observation | ModelCallError) -> Finding:
    if isinstance(answer, ModelCallError):
        return Finding(
            probe="tool results",
            level="problem",
            text=f"the server refuses the result of a call: {reason_of(answer)}",
            advice="Correct the chat template of the server, or use another server.",
            limit="results of tool calls are refused",
        )
    if STATION in answer.reply.content:
        return Finding(probe="tool results", level="ok", text="the model reads them")
    written = quote(answer.raw_text) if answer.raw_text.strip() else "another call"
    return Finding(
        probe="tool results",
        level="warning",
        text=f"the model did not use the result of its call; it wrote {written}",
        advice="Check the chat template of the server, or use a model that is better at tool calls.",
        limit="it did not use the result of a call",
    )


def _reasoning_finding(
    names: str, plain: Observation | ModelCallError, replayed: Observation | ModelCallError
) -> Finding:
    if isinstance(replayed, ModelCallError):
        if isinstance(plain, ModelCallError):
            return Finding(probe="reasoning", level="info", text=f"sends {names}; not known whether it takes it back")
        text = f"sends {names}, but refuses it in the history; Anker leaves it out"
        return Finding(probe="reasoning", level="ok", text=text, facts={"thinking_replay": False})
    demanded = "must have it back" if isinstance(plain, ModelCallError) else "takes it back"
    text = f"sends {names} and {demanded}; Anker returns it"
    return Finding(probe="reasoning", level="ok", text=text, facts={"thinking_replay": True})


async def check_parallel_calls(client: ProbeClient) -> Finding:
    """Return whether the model makes several calls in one turn."""
    question = "Compare the temperatures in Oslo and Lima. Make both calls in this one turn, side by side."
    messages = [SYSTEM, user(question)]
    seen = await client.ask(messages, tools=[TEMPERATURE], max_tokens=REPLY_TOKENS, enough_chars=PROSE_CHARS)
    calls = seen.reply.tool_calls
    if len(calls) >= 2 and all(_is_valid(call) for call in calls):
        return Finding(probe="parallel calls", level="ok", text="yes", facts={"parallel_calls": True})
    if len(calls) >= 2:
        return Finding(
            probe="parallel calls",
            level="warning",
            text=f"several calls in one turn are faulty: {quote(' '.join(call.arguments for call in calls))}",
            advice="Set parallel_calls = false for this profile.",
            limit="several calls in one turn are faulty",
            facts={"parallel_calls": False},
        )
    text = "one call in each turn, so that tasks take more model calls"
    return Finding(probe="parallel calls", level="info", text=text, facts={"parallel_calls": False})


async def check_long_arguments(client: ProbeClient) -> Finding:
    """Return whether a call with several thousand characters arrives whole."""
    line = "Line 1: the quick brown fox jumps over the lazy dog."
    question = (
        f"Write the file lines.txt with one call of write_file. Its content is {LONG_LINES} lines, the first is "
        f"“{line}” and each following one has the next number. Write out every line; leave nothing out."
    )
    messages = [SYSTEM, user(question)]
    seen = await client.ask(messages, tools=[WRITE_FILE], max_tokens=LONG_TOKENS, enough_chars=PROSE_CHARS)
    reply = seen.reply
    if not reply.tool_calls:
        text = f"the model made no call; it wrote {quote(seen.raw_text)}"
        return Finding(probe="long arguments", level="warning", text=text, limit="long arguments were not tested")
    call = reply.tool_calls[0]
    chars = len(call.arguments)
    if reply.finish == "length" or (seen.is_complete and not parse_arguments(call)):
        return _cut_finding(client, chars, reply.usage.completion_tokens, cut_by_limit=reply.finish == "length")
    if not seen.is_complete:
        text = f"{chars:,} characters arrived in {seen.last_part:.0f} s, then the time was over"
        return Finding(probe="long arguments", level="info", text=text)
    written = re.sub(r"\s+", " ", str(parse_arguments(call).get("content", "")))
    if len(written) < LONG_CHARS:
        text = f"arrive whole, but the model wrote only {chars:,} characters of {LONG_LINES * len(line):,}"
        return Finding(probe="long arguments", level="info", text=text)
    text = f"{chars:,} characters arrived whole"
    if client.output_limit is None:
        return Finding(probe="long arguments", level="ok", text=text)
    text += f"; the server takes a limit of {client.output_limit:,} tokens at most"
    return Finding(probe="long arguments", level="ok", text=text, facts=_limits(client, client.output_limit))


def _limits(client: ProbeClient, output_limit: int) -> Mapping[str, FactValue]:
    return {"output_limit": output_limit, "max_tokens": min(output_limit, client.profile.max_tokens)}


def _cut_finding(client: ProbeClient, chars: int, tokens: int, *, cut_by_limit: bool) -> Finding:
    facts: Mapping[str, FactValue] = {}
    if cut_by_limit and 0 < tokens < LONG_TOKENS:
        facts = _limits(client, tokens)
    reason = f"the server ends replies after {tokens:,} tokens" if facts else "the arguments arrived incomplete"
    if cut_by_limit and not facts:
        reason = f"the reply reached its limit of {LONG_TOKENS:,} tokens"
    return Finding(
        probe="long arguments",
        level="warning",
        text=f"cut after {chars:,} characters: {reason}",
        advice="Raise the output limit of the server, if it has one. Long files are written in several calls.",
        limit=f"arguments are cut after {chars:,} characters",
        facts=facts,
    )
