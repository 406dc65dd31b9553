"""The reference: a bare ASGI application under the same uvicorn settings as the service.

- `GET /bytes?n=N` returns N bytes.
- `POST /first` returns a stream whose first event is sent at once.
- `GET /stream?n=N` waits for `GET /go`, then sends N encoded events, one per send.
"""

import asyncio
from typing import Any

from app.domain.models.event import EventRecord
from app.interfaces.wire import encode_event, sse_frame
from bench.events import sample
from bench.programs.serving import serve

_OPEN_COMMENT = b": open\n\n"


class Bare:
    """The application."""

    def __init__(self) -> None:
        self._go = asyncio.Event()
        self._frames: list[bytes] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Respond to a request, as the ASGI specification says."""
        if scope["type"] != "http":
            return
        number = int(scope["query_string"].partition(b"=")[2] or 0)
        match scope["path"]:
            case "/bytes":
                await _whole(send, bytes(number))
            case "/go":
                self._go.set()
                self._go = asyncio.Event()
                await _whole(send, b"{}")
            case "/first":
                await _start(send)
                await _body(send, _OPEN_COMMENT)
                await _body(send, sse_frame(EventRecord(1, "title", b'{"title":"A title"}')))
                await _body(send, b"", more=False)
            case "/stream":
                await self._stream(send, number)
            case _:
                await _whole(send, b"{}")

    async def _stream(self, send: Any, number: int) -> None:
        if len(self._frames) != number:
            records = (EventRecord(n, "tool", encode_event(sample(n), n, 1_767_225_600)) for n in range(1, number + 1))
            self._frames = [sse_frame(record) for record in records]
        await _start(send)
        await _body(send, _OPEN_COMMENT)
        await self._go.wait()
        for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await _body(send, b"", more=False)


async def _whole(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await _body(send, body, more=False)


async def _start(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})


async def _body(send: Any, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


if __name__ == "__main__":
    serve(Bare())
