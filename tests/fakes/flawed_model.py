"""A model server's script that passes the model check, but for the flaws that a test gives it."""

import re
from dataclasses import dataclass, replace
from typing import Any

import orjson

from tests.fakes.scripted_openai import Answer, Asked, Call, Raw, Reply, Status
from tests.support.strict_server import violation

KEY = "sk-check-0123456789abcdef"
CHARS_PER_TOKEN = 4

_WORD = re.compile(r"The code word is (\S+)\. Remember it\.")
_STATION = re.compile(r"the station (\S+)\.")


def refusal(message: str, *, status: int = 400, **fields: Any) -> Status:
    """Return a refusal in the form of OpenAI."""
    return Status(status=status, body={"error": {"message": message, "type": "invalid_request_error", **fields}})


@dataclass(frozen=True, kw_only=True)
class FlawedModel:
    """A script for `ScriptedOpenAI`.

    Args:
        calls: `native`, `text` (marked up as text, understood), `odd text` (not understood), `faulty` or `none`.
        refuses_tools: Text of the refusal of tools.
        window: Tokens of the context window.
        truncates: Cut a longer prompt silently, instead of refusing it.
        parallel: Make several calls in one turn, and take several in the history.
        output_tokens: The server's own limit of a reply.
        largest_limit: Largest token limit that the server takes; it refuses larger ones.
        sees: Whether it sees pictures; None to refuse them.
        usage: Report usage.
        caches: Report cached tokens.
        streams: Stream replies.
        only_temperature: The only temperature that it takes.
        strict: Refuse what the strictest servers refuse.
        reasoning: `none`, `plain`, `demanded` or `refused` in the history.
        delay: Seconds before each piece of a reply.
    """

    calls: str = "native"
    refuses_tools: str = ""
    window: int = 1_000_000
    truncates: bool = False
    parallel: bool = True
    output_tokens: int = 100_000
    largest_limit: int = 100_000
    sees: bool | None = True
    usage: bool = True
    caches: bool = True
    streams: bool = True
    only_temperature: float | None = None
    strict: bool = False
    reasoning: str = "none"
    delay: float = 0

    def __call__(self, asked: Asked) -> Answer:
        """Return the answer to a request."""
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(f"Incorrect API key provided: {asked.headers.get('authorization')}", status=401)
        if asked.body["model"] != "test-model":
            return refusal("The model does not exist", status=404, code="model_not_found")
        if refused := self._refusal(asked):
            return refused
        messages = asked.messages
        if self.truncates and _tokens(messages) > self.window:
            messages = [messages[0], *_last(messages[1:], self.window)]
        reply = replace(
            self._reply(asked, messages),
            prompt_tokens=_tokens(messages),
            cached_tokens=_tokens(messages[:1]) if self.caches else 0,
            size=40,
            delay=self.delay,
            plain=not self.streams,
        )
        return self._with_reasoning(reply) if self.reasoning != "none" and reply.calls else reply

    def _refusal(self, asked: Asked) -> Status | None:
        """Return the refusal of a request with something that the server does not take."""
        body, text = asked.body, asked.raw.decode()
        turns = [message for message in asked.messages if message.get("tool_calls")]
        has_reasoning = all("reasoning_content" in turn for turn in turns)
        checks = (
            (not self.usage and "stream_options" in body, "Unknown parameter: 'stream_options'."),
            (
                self.only_temperature is not None and body.get("temperature", 1) != self.only_temperature,
                f"invalid temperature: only {self.only_temperature:g} is allowed for this model"
                if self.only_temperature is not None
                else "",
            ),
            (bool(self.refuses_tools and asked.tools), self.refuses_tools),
            (
                not self.parallel and any(len(turn["tool_calls"]) > 1 for turn in turns),
                "This model only supports single tool-calls at once!",
            ),
            (self.sees is None and "image_url" in text, "This model does not support image input."),
            (self.reasoning == "demanded" and not has_reasoning, "reasoning_content is missing in assistant message 2"),
            (
                self.reasoning == "refused" and "reasoning_content" in text,
                "messages.2: Extra inputs are not permitted: 'reasoning_content'",
            ),
            (
                body.get("max_tokens", 0) > self.largest_limit,
                f"max_tokens is too large: {body.get('max_tokens')}. This model supports at most {self.largest_limit}.",
            ),
            (
                not self.truncates and _tokens(asked.messages) > self.window,
                f"This model's maximum context length is {self.window} tokens. However, your messages resulted in "
                f"{_tokens(asked.messages)} tokens.",
            ),
        )
        rule = next((rule for applies, rule in checks if applies), "")
        if self.strict:
            rule = rule or violation(body, extra_fields=frozenset({"reasoning_content"}))
        return refusal(rule) if rule else None

    def _reply(self, asked: Asked, messages: list[dict[str, Any]]) -> Reply:
        last = messages[-1]
        text = orjson.dumps(last["content"]).decode()
        if last["role"] == "tool":
            station = _STATION.search(last["content"])
            return Reply(text=f"17 degrees, measured by {station[1]}." if station else "It is warm.")
        if "image_url" in text:
            return Reply(text="Yellow, green." if self.sees else "Red and blue.")
        if "What is the code word?" in text:
            word = _WORD.search(orjson.dumps(messages).decode())
            return Reply(text=word[1] if word else "I was not told a code word.")
        if "get_temperature" in asked.tools and "OK." not in text and "Oslo" in text:
            cities = ("Oslo", "Lima") if "Lima" in text and self.parallel else ("Oslo",)
            return self._call([Call("get_temperature", {"city": city}) for city in cities])
        if "write_file" in asked.tools:
            lines = [f"Line {number}: the quick brown fox jumps over the lazy dog." for number in range(1, 121)]
            return self._long_call(Call("write_file", {"path": "lines.txt", "content": "\n".join(lines)}))
        return Reply(text="one, two, three, four, five, six, seven, eight, nine, ten, " * 5)

    def _call(self, calls: list[Call]) -> Reply:
        first = orjson.dumps({"name": calls[0].name, "arguments": calls[0].arguments}).decode()
        return {
            "native": Reply(calls=calls),
            "text": Reply(text=f"<tool_call>\n{first}\n</tool_call>"),
            "odd text": Reply(text="I would use get_temperature (city being Oslo) now."),
            "faulty": Reply(calls=[Call("get_temperature", "{Oslo")]),
            "none": Reply(text="It is about 15 degrees in Oslo."),
        }[self.calls]

    def _long_call(self, call: Call) -> Reply:
        limit = self.output_tokens * CHARS_PER_TOKEN
        if len(call.text) <= limit:
            return Reply(calls=[call], completion_tokens=len(call.text) // CHARS_PER_TOKEN)
        cut = replace(call, arguments=call.text[:limit])
        return Reply(calls=[cut], finish="length", completion_tokens=self.output_tokens)

    def _with_reasoning(self, reply: Reply) -> Raw:
        calls = [
            {
                "index": index,
                "id": f"a1b2c3d{index:02}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.text},
            }
            for index, call in enumerate(reply.calls)
        ]
        deltas = (
            {"role": "assistant", "reasoning_content": "I need the temperature. "},
            {"reasoning_content": "So I call the tool."},
            {"tool_calls": calls},
        )
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "usage": reply.usage})
        return Raw(pieces=[*(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"])


def _tokens(messages: list[dict[str, Any]]) -> int:
    return len(orjson.dumps(messages)) // CHARS_PER_TOKEN


def _last(messages: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Return the last messages that fit, as servers do that cut the beginning of a conversation."""
    kept = messages[-1:]
    for message in reversed(messages[:-1]):
        if _tokens([message, *kept]) > tokens:
            break
        kept = [message, *kept]
    return kept
