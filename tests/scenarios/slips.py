"""Models that slip: they carry out a task, but many of their turns are wrong in one of the ways of real models."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import orjson

from tests.fakes.scripted_openai import Answer, Asked, Call, Raw, Reply, Status

MAX_SLIPS_IN_A_ROW = 2
"""Maximum number of useless turns in a row, so that the service does not give up."""


def _with_arguments(reply: Reply, change: Callable[[str], str]) -> Reply:
    return replace(reply, calls=[Call(call.name, change(call.text), id=call.id) for call in reply.calls])


def _as_text(reply: Reply) -> Reply:
    blocks = [f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.text}}}\n</tool_call>' for call in reply.calls]
    return replace(reply, text="\n".join(blocks), calls=())


def _thoughts_before(reply: Reply) -> Reply:
    return replace(reply, text=f"<think>\nI go on as planned.\n</think>\n{reply.text}")


def _same_ids(reply: Reply) -> Reply:
    return replace(reply, calls=[replace(call, id="call_0") for call in reply.calls])


def _without_ids(reply: Reply) -> Reply:
    return replace(reply, calls=[replace(call, id="") for call in reply.calls])


DISTORTED: dict[str, Callable[[Reply], Reply]] = {
    "double-encoded arguments": lambda reply: _with_arguments(reply, json.dumps),
    "wrapped arguments": lambda reply: _with_arguments(reply, lambda text: f'{{"arguments": {text}}}'),
    "fenced arguments": lambda reply: _with_arguments(reply, lambda text: f"```json\n{text}\n```"),
    "trailing comma": lambda reply: _with_arguments(reply, lambda text: f"{text[:-1]},}}"),
    "calls as text": _as_text,
    "thoughts in the text": _thoughts_before,
    "the same id for every call": _same_ids,
    "no ids": _without_ids,
}
"""Changes of a good turn with calls that leave its meaning clear."""


def chunk(delta: object, finish: str | None = None) -> bytes:
    """Return an event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + orjson.dumps({"object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


USELESS: dict[str, Answer] = {
    "prose": Reply(text="I would now look at the next report."),
    "an empty reply": Reply(text=""),
    "malformed arguments": Reply(calls=[Call("shell_exec", '{"id": "main", "exec_dir": ')]),
    "a missing argument": Reply(calls=[Call("shell_exec", {"id": "main"})]),
    "an unknown function": Reply(calls=[Call("python.run", {"code": "print(1)"})]),
    "cut within a call": Reply(calls=[Call("file_write", '{"file": "~/a", "content": "xxxx')], finish="length"),
    "a broken stream": Raw(pieces=[chunk({"role": "assistant", "content": "The repo"})], cut=True),
    "a network error": Raw(pieces=[chunk({"content": "The rep"}), chunk({}, "network_error"), b"data: [DONE]\n\n"]),
    "an error within the stream": Raw(pieces=[b'data: {"error":{"message":"overloaded","code":503}}\n\n']),
    "HTTP 429": Status(status=429, body={"error": {"message": "slow down"}}, headers={"Retry-After": "0"}),
    "HTTP 503": Status(status=503, body={"error": {"message": "loading"}}, headers={"Retry-After": "0"}),
    "tool_use_failed": Status(
        status=400,
        body={
            "error": {
                "message": "Failed to call a function. Please adjust your prompt.",
                "type": "invalid_request_error",
                "code": "tool_use_failed",
                "failed_generation": '<function=shell_exec{"id": "main"}></function>',
            }
        },
    ),
}
"""Answers to an executing request that lead nowhere; asked again, the model goes on."""

ANY = ("an empty reply", "a broken stream", "a network error", "an error within the stream", "HTTP 429")
"""Names of those that can take the place of a summary or a final answer too."""


class SlippingModel:
    """A script that answers as `honest` does, except for a share of slips.

    Args:
        honest: The script that knows the task.
        rng: Chooses the slips.
        share: Share of slips among the answers, from 0 to 1.
    """

    def __init__(self, honest: Callable[[Asked], Answer], rng: random.Random, *, share: float) -> None:
        self.slips: dict[str, int] = {}
        """How often each slip was made."""
        self._honest = honest
        self._rng = rng
        self._share = share
        self._in_a_row = 0
        self._decks: dict[str, list[str]] = {}

    def __call__(self, asked: Asked) -> Answer:
        if self._rng.random() >= self._share:
            self._in_a_row = 0
            return self._honest(asked)
        if self._in_a_row < MAX_SLIPS_IN_A_ROW and self._rng.random() < 0.5:
            self._in_a_row += 1
            return USELESS[self._draw("executing", USELESS) if asked.kind == "executing" else self._draw("text", ANY)]
        self._in_a_row = 0
        answer = self._honest(asked)
        if not isinstance(answer, Reply) or not answer.calls:
            return answer
        return DISTORTED[self._draw("distorted", DISTORTED)](answer)

    def _draw(self, deck: str, names: Iterable[str]) -> str:
        """Return a name that was not drawn from its deck since all others were."""
        if not self._decks.get(deck):
            self._decks[deck] = sorted(names, key=lambda name: self._rng.random())
        name = self._decks[deck].pop()
        self.slips[name] = self.slips.get(name, 0) + 1
        return name
