"""The server's side of a WebSocket: uvicorn's, with an end to what a client that does not read could hold on to."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame

MAX_MESSAGE = 1 << 20
"""Bytes of one message of a client; a longer one ends the connection with 1009."""

PING_SECONDS = 20.0
PONG_SECONDS = 60.0
"""A client that does not answer a ping for so long is gone. What was sent before the ping must get through first, which
takes its time on a slow line: a whole picture of a desktop is megabytes."""

MAX_FRAGMENTS = 1024
"""Pieces of one message: empty ones count for nothing in its size."""

LINGER_SECONDS = 10.0
"""How long a client may take to read the rest once its connection is over."""
SHUTDOWN_SECONDS = 1.0
"""The same when the whole server ends."""


class ViewerConnection(WebSocketsSansIOProtocol):
    """uvicorn closes a connection only after everything was written, answers every ping, and collects the pieces of a
    message however many they are: a client that reads nothing would keep its connection for ever, and could make the
    answers to its pings, or empty pieces, pile up."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._unanswered = b""

    def handle_cont(self, event: Frame) -> None:
        """A further piece of a message."""
        if self.close_sent:
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """While the client takes nothing, only its newest ping is kept to be answered, as the protocol allows."""
        if self.writable.is_set():
            super().handle_ping()
        elif output := self.conn.data_to_send():
            self._unanswered = output[-1]

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._unanswered and not self.transport.is_closing():
            self.transport.write(self._unanswered)
        self._unanswered = b""

    def keepalive_timeout(self) -> None:
        """The client is gone, or does not read."""
        super().keepalive_timeout()
        self.transport.abort()

    def shutdown(self) -> None:
        """The server ends, and waits for no client that does not read."""
        super().shutdown()
        self.loop.call_later(SHUTDOWN_SECONDS, self.transport.abort)

    async def run_asgi(self) -> None:
        """Run the application for this connection, then see to it that it ends."""
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)
