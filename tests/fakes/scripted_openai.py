"""An OpenAI-compatible model server that answers from a script, over real HTTP on a loopback port.

In a test: `with ScriptedOpenAI([Reply(text="Hello.")]) as server: ... server.url ... server.asked[0].body`. A script is
a list of answers that are used in order, or a function from a request to an answer. As a process of its own:
`python -m tests.fakes.scripted_openai --port 0` prints its base URL and follows `agent_script`.
"""

import argparse
import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import uvicorn

from tests.support.strict_server import violation

Kind = Literal["planning", "executing", "final", "summary"]


@dataclass(frozen=True)
class Call:
    """A tool call of the model. Arguments given as text are sent unchanged and may be invalid JSON."""

    name: str
    arguments: str | dict[str, Any] = field(default_factory=dict)
    id: str | None = None

    @property
    def text(self) -> str:
        """The arguments as they are sent."""
        return self.arguments if isinstance(self.arguments, str) else orjson.dumps(self.arguments).decode()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A turn of the model, streamed if the request asks for it.

    Args:
        size: Number of characters of each piece.
        delay: Seconds before each piece.
        hang_after: Number of pieces after which the server sends nothing more.
        cut_after: Number of pieces after which the server drops the connection.
        plain: Never stream.
    """

    text: str = ""
    calls: Sequence[Call] = ()
    finish: str | None = None
    prompt_tokens: int = 11
    cached_tokens: int = 5
    completion_tokens: int = 7
    size: int = 1_000
    delay: float = 0
    hang_after: int | None = None
    cut_after: int | None = None
    plain: bool = False

    @property
    def reason(self) -> str:
        """The finish_reason that is sent."""
        return self.finish or ("tool_calls" if self.calls else "stop")

    @property
    def usage(self) -> dict[str, Any]:
        """The usage object that is sent."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, kw_only=True)
class Status:
    """An HTTP status with a body (a dict is sent as JSON) and headers, instead of a turn."""

    status: int
    body: dict[str, Any] | list[Any] | str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A stream given byte for byte, in pieces. After the last one `cut` drops the connection; `hang` keeps it open."""

    pieces: Sequence[bytes]
    cut: bool = False
    hang: bool = False
    content_type: str = "text/event-stream"


Answer = Reply | Status | Raw


class Asked:
    """One request as the server received it."""

    def __init__(self, path: str, headers: dict[str, str], raw: bytes, *, client: tuple[str, int], query: str) -> None:
        self.client = client
        self.at = time.monotonic()
        self.path, self.query, self.headers, self.raw = path, query, headers, raw
        self.body: dict[str, Any] = orjson.loads(raw)
        self.messages: list[dict[str, Any]] = self.body.get("messages", [])
        self.tools = frozenset(tool["function"]["name"] for tool in self.body.get("tools", ()))
        self.answered_at = 0.0
        """Monotonic time of the end of the answer."""
        self.disconnected = threading.Event()
        """Set when the client closed the connection before the answer was complete."""

    @property
    def kind(self) -> Kind:
        """The part of a run that sent the request, recognised by the functions on offer."""
        if "create_plan" in self.tools:
            return "planning"
        if "complete_step" in self.tools:
            return "executing"
        return "summary" if self.messages[0]["content"].startswith("You compress the history") else "final"


Script = Sequence[Answer] | Callable[[Asked], Answer]


def agent_script(
    *, steps: int = 2, calls: Sequence[Call] = (), text: str = "All is done."
) -> Callable[[Asked], Answer]:
    """Return a script that completes any task: a plan, one turn for each of `calls` in each step, a final answer."""
    plan = {
        "title": "A scripted task",
        "message": "I will do what you ask.",
        "goal": "Do what was asked",
        "steps": [{"id": str(n), "description": f"Step {n}"} for n in range(1, steps + 1)],
    }

    def answer(asked: Asked) -> Answer:
        if asked.kind == "planning":
            return Reply(calls=[Call("create_plan", plan)])
        if asked.kind == "final":
            return Reply(text=text)
        if asked.kind == "summary":
            return Reply(text="The steps were carried out as planned; nothing else happened. " * 5)
        done = 0
        for message in reversed(asked.messages):
            made = [call["function"]["name"] for call in message.get("tool_calls") or ()]
            if "complete_step" in made or (message["role"] == "user" and isinstance(message["content"], str)):
                break
            done += bool(made)
        if done < len(calls):
            return Reply(calls=[calls[done]])
        return Reply(calls=[Call("complete_step", {"success": True, "result": "The step is done."})])

    return answer


class _Cut(Exception):
    pass


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "model": "scripted", "choices": [choice]}


def _cuts(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def _pieces(reply: Reply, number: int) -> Iterator[bytes]:
    for piece in _cuts(reply.text, reply.size):
        yield _sse(_chunk({"role": "assistant", "content": piece}))
    for index, call in enumerate(reply.calls):
        head = {"name": call.name, "arguments": ""}
        call_id = f"call_{number}_{index}" if call.id is None else call.id
        yield _sse(_chunk({"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": head}]}))
        for piece in _cuts(call.text, reply.size):
            yield _sse(_chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))


def _whole(reply: Reply, number: int) -> bytes:
    calls = [
        {"id": f"call_{number}_{index}", "type": "function", "function": {"name": call.name, "arguments": call.text}}
        for index, call in enumerate(reply.calls)
    ]
    message = {"role": "assistant", "content": reply.text or None, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": reply.reason}
    return orjson.dumps({"object": "chat.completion", "choices": [choice], "usage": reply.usage})


class ScriptedApp:
    """The ASGI application: passes each request to the script and sends the answer.

    A `strict` server refuses a request that breaks a rule of the strictest real servers, and keeps the rule in
    `violations`.
    """

    def __init__(self, script: Script = (), *, record: bool = True, strict: bool = False) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.violations: list[str] = []
        self._record = record
        self.strict = strict
        self._count = 0
        self._arrived = threading.Condition()

    def reset(self, script: Script) -> None:
        """Forget every request and follow `script` from its beginning."""
        self.script, self.asked, self.violations, self._count = script, [], [], 0

    def wait_for(self, count: int, timeout: float = 30) -> bool:
        """Block until `count` requests have arrived."""
        with self._arrived:
            return self._arrived.wait_for(lambda: self._count >= count, timeout)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        raw = bytearray()
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        asked = Asked(scope["path"], headers, bytes(raw), client=tuple(scope["client"]), query=query)
        number = self._count
        with self._arrived:
            if self._record:
                self.asked.append(asked)
            self._count += 1
            self._arrived.notify_all()
        try:
            await _play(self._answer(asked, number), asked, number, receive, send)
        finally:
            asked.answered_at = time.monotonic()

    def _answer(self, asked: Asked, number: int) -> Answer:
        if self.strict and (rule := violation(asked.body)):
            self.violations.append(rule)
            return Status(status=400, body={"error": {"message": rule, "type": "invalid_request_error"}})
        if callable(self.script):
            return self.script(asked)
        if number < len(self.script):
            return self.script[number]
        return Status(status=418, body={"error": {"message": "the test's script is over"}})


async def _start(send: Any, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
    pairs = [(b"content-type", content_type.encode())]
    pairs += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _play(answer: Answer, asked: Asked, number: int, receive: Any, send: Any) -> None:
    match answer:
        case Status():
            is_text = isinstance(answer.body, str)
            await _start(send, answer.status, "text/html" if is_text else "application/json", answer.headers)
            body = answer.body.encode() if isinstance(answer.body, str) else orjson.dumps(answer.body)
            await send({"type": "http.response.body", "body": body})
        case Raw():
            await _start(send, 200, answer.content_type)
            for piece in answer.pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)  # so that each piece becomes a packet
            if answer.cut:
                raise _Cut
            if answer.hang and await _pause(None, asked, receive):
                return
            await send({"type": "http.response.body", "body": b""})
        case Reply() if answer.plain or not asked.body.get("stream"):
            await _start(send, 200, "application/json")
            await send({"type": "http.response.body", "body": _whole(answer, number)})
        case Reply():
            await _start(send, 200, "text/event-stream")
            await _stream(answer, asked, number, receive, send)


async def _pause(seconds: float | None, asked: Asked, receive: Any) -> bool:
    """Wait, and return whether the client disconnected. (After the body, `receive` returns only for that.)"""
    with suppress(TimeoutError):
        await asyncio.wait_for(receive(), seconds)
        asked.disconnected.set()
        return True
    return False


async def _stream(reply: Reply, asked: Asked, number: int, receive: Any, send: Any) -> None:
    ready = bytearray()
    slow = bool(reply.delay or reply.hang_after is not None or reply.cut_after is not None)
    for sent, piece in enumerate([*_pieces(reply, number), b""]):
        if sent == reply.hang_after:
            await _pause(None, asked, receive)
            return
        if sent == reply.cut_after:
            raise _Cut
        if slow and piece:
            if reply.delay and await _pause(reply.delay, asked, receive):
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        ready += b"" if slow else piece
    ready += _sse(_chunk({}, reply.reason))
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        ready += _sse({"object": "chat.completion.chunk", "choices": [], "usage": reply.usage})
    ready += b"data: [DONE]\n\n"
    await send({"type": "http.response.body", "body": bytes(ready)})


def _config(app: ScriptedApp) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, log_level="critical", access_log=False, lifespan="off")  # type: ignore[arg-type]


class ScriptedOpenAI(ScriptedApp):
    """A context manager that runs the server in a thread of this process."""

    def __init__(self, script: Script = (), *, record: bool = True, strict: bool = False, port: int = 0) -> None:
        super().__init__(script, record=record, strict=strict)
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1_024)
        self._server = uvicorn.Server(_config(self))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        """The value for `API_BASE`."""

    def __enter__(self) -> "ScriptedOpenAI":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Without `force_exit` the server would wait for an answer that hangs.
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()


def main() -> None:
    """Serve `agent_script` until killed; the first line of the output is the base URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fd", type=int, help="an inherited listening socket, instead of --port")
    parser.add_argument("--steps", type=int, default=2, help="steps of a plan")
    parser.add_argument("--calls", default="[]", help='tool calls of each step: JSON [["name", {arguments}], …]')
    parser.add_argument("--text", default="All is done.", help="the final answer")
    parser.add_argument("--strict", action="store_true", help="refuse what the strictest servers refuse")
    options = parser.parse_args()
    calls = [Call(name, arguments) for name, arguments in orjson.loads(options.calls)]
    script = agent_script(steps=options.steps, calls=calls, text=options.text)
    app = ScriptedApp(script, record=False, strict=options.strict)
    if options.fd is None:
        listener = socket.create_server(("127.0.0.1", options.port), backlog=1_024)
    else:
        listener = socket.socket(fileno=options.fd)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(_config(app)).run([listener])


if __name__ == "__main__":
    main()
