"""A model server that makes two runs take turns, so that both are measured under the same conditions.

    python -m bench.programs.turns WINDOW NAME=TURNS NAME=TURNS

The user message of a run contains `bench-NAME`. Each turn of a run is one shell_exec call, sent at once up to turn
TURNS. There the run waits for the other one. Then the two runs get WINDOW turns each, in turn: one waits while the
other works. Then both end. `GET /bench/turns` returns `{NAME: {"turns": [[sent, asked again], …], "bytes": N}}`: the
monotonic times of the WINDOW turns and the size of the last request.
"""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from bench.programs.rawhttp import Exchange, Request, serve

_NAME = re.compile(rb"bench-([a-z]+)")
_PLAN = {
    "title": "A long piece of work",
    "message": "I will do it.",
    "goal": "Do what was asked",
    "steps": [{"id": "1", "description": "Look again and again"}],
}
_COMPLETE = {"success": True, "result": "Looked."}


@dataclass(slots=True)
class Track:
    """The state of one run."""

    free: int
    count: int = 0
    sent: float | None = None
    turns: list[tuple[float, float]] = field(default_factory=list)
    parked: Exchange | None = None
    size: int = 0


class Turns:
    """The model server."""

    def __init__(self, window: int, tracks: dict[str, Track]) -> None:
        self._window = window
        self._tracks = tracks
        self._over = False

    def respond(self, exchange: Exchange, request: Request) -> None:
        """Respond to one request, now or when it is the turn of its run."""
        if request.path == "/bench/turns":
            tracks = {name: {"turns": track.turns, "bytes": track.size} for name, track in self._tracks.items()}
            exchange.send(orjson.dumps(tracks))
            return
        named = _NAME.search(request.body)
        if named is None:
            exchange.send(b'{"error":{"message":"the stand-in found no bench-NAME"}}', status="400 Bad Request")
            return
        track = self._tracks[named[1].decode()]
        if b'"create_plan"' in request.body:
            exchange.send(_call("create_plan", _PLAN, 0), kind="text/event-stream")
        elif b'"complete_step"' not in request.body:
            exchange.send(_text("All is done."), kind="text/event-stream")
        else:
            self._executing(track, exchange, request)

    def _executing(self, track: Track, exchange: Exchange, request: Request) -> None:
        track.count += 1
        if track.sent is not None:
            track.turns.append((track.sent, request.at))
            track.size, track.sent = request.size, None
        if track.count <= track.free:
            exchange.send(_call("shell_exec", _exec(track.count), track.count), kind="text/event-stream")
            return
        track.parked = exchange
        if not self._over and all(each.parked for each in self._tracks.values()):
            self._send_next_turn()

    def _send_next_turn(self) -> None:
        """Respond to the run that has had fewer turns, or end both. Both must be waiting."""
        track = min(self._tracks.values(), key=lambda each: len(each.turns))
        if len(track.turns) == self._window:
            self._over = True
            for each in self._tracks.values():
                assert each.parked is not None
                each.parked.send(_call("complete_step", _COMPLETE, each.count), kind="text/event-stream")
            return
        assert track.parked is not None
        exchange, track.parked = track.parked, None
        body = _call("shell_exec", _exec(track.count), track.count)
        exchange.send(body, kind="text/event-stream")
        track.sent = time.monotonic()


def _exec(number: int) -> Mapping[str, object]:
    # A number in the command: the same call with the same result again and again would end the step.
    return {"id": "main", "exec_dir": "~", "command": f"ls -la  # {number}"}


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
    """Serve until the process is killed."""
    window, *tracks = sys.argv[1:]
    pairs = (track.split("=") for track in tracks)
    serve(Turns(int(window), {name: Track(int(turns)) for name, turns in pairs}).respond)


if __name__ == "__main__":
    main()
