"""A model that makes two runs take turns, so that both are measured in the same moments.

    python -m bench.programs.turns WINDOW NAME=TURNS NAME=TURNS

The user's words hold `bench-NAME`. A run is answered with one shell_exec call a turn, at once, up to its turn TURNS.
There it waits for the other. Then the two get an answer in alternation, WINDOW turns each: each waits while the other
works. After that both come to their end. `GET /bench/turns` → `{NAME: {"turns": [[sent, asked again], …], "bytes": size
of the last request's body}}`, monotonic seconds of the WINDOW turns.
"""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from bench.programs.rawhttp import Asked, Exchange, serve

_NAME = re.compile(rb"bench-([a-z]+)")
_PLAN = {
    "title": "A long piece of work",
    "message": "I will do it.",
    "goal": "Do what was asked",
    "steps": [{"id": "1", "description": "Look again and again"}],
}
_EXEC = {"id": "main", "exec_dir": "~", "command": "ls -la"}
_COMPLETE = {"success": True, "result": "Looked."}


@dataclass(slots=True)
class Track:
    """One of the runs."""

    free: int
    count: int = 0
    sent: float | None = None
    turns: list[tuple[float, float]] = field(default_factory=list)
    parked: Exchange | None = None
    size: int = 0


class Turns:
    """The model."""

    def __init__(self, window: int, tracks: dict[str, Track]) -> None:
        self._window = window
        self._tracks = tracks
        self._over = False

    def answer(self, exchange: Exchange, asked: Asked) -> None:
        """Answer one request, now or when it is its run's turn."""
        if asked.path == "/bench/turns":
            tracks = {name: {"turns": track.turns, "bytes": track.size} for name, track in self._tracks.items()}
            exchange.send(orjson.dumps(tracks))
            return
        named = _NAME.search(asked.body)
        if named is None:
            exchange.send(b'{"error":{"message":"the stand-in found no bench-NAME"}}', status="400 Bad Request")
            return
        track = self._tracks[named[1].decode()]
        if b'"create_plan"' in asked.body:
            exchange.send(_call("create_plan", _PLAN, 0), kind="text/event-stream")
        elif b'"complete_step"' not in asked.body:
            exchange.send(_text("All is done."), kind="text/event-stream")
        else:
            self._executing(track, exchange, asked)

    def _executing(self, track: Track, exchange: Exchange, asked: Asked) -> None:
        track.count += 1
        if track.sent is not None:
            track.turns.append((track.sent, asked.at))
            track.size, track.sent = asked.size, None
        if track.count <= track.free:
            exchange.send(_call("shell_exec", _EXEC, track.count), kind="text/event-stream")
            return
        track.parked = exchange
        if not self._over and all(each.parked for each in self._tracks.values()):
            self._go_on()

    def _go_on(self) -> None:
        """Both wait: answer the one that has had fewer turns, or end both."""
        track = min(self._tracks.values(), key=lambda each: len(each.turns))
        if len(track.turns) == self._window:
            self._over = True
            for each in self._tracks.values():
                assert each.parked is not None
                each.parked.send(_call("complete_step", _COMPLETE, each.count), kind="text/event-stream")
            return
        assert track.parked is not None
        exchange, track.parked = track.parked, None
        body = _call("shell_exec", _EXEC, track.count)
        exchange.send(body, kind="text/event-stream")
        track.sent = time.monotonic()


def _call(name: str, arguments: Mapping[str, object], number: int) -> bytes:
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    call = {"index": 0, "id": f"call_{number}_{name}", "type": "function", "function": function}
    return _stream({"role": "assistant", "tool_calls": [call]}, "tool_calls")


def _text(text: str) -> bytes:
    return _stream({"role": "assistant", "content": text}, "stop")


def _stream(delta: dict[str, object], finish: str) -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": usage},
    ]
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "model": "scripted"}
    return b"".join(b"data: " + orjson.dumps(head | chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def main() -> None:
    """Serve until killed."""
    window, *tracks = sys.argv[1:]
    pairs = (track.split("=") for track in tracks)
    serve(Turns(int(window), {name: Track(int(turns)) for name, turns in pairs}).answer)


if __name__ == "__main__":
    main()
