"""BoundedTransport on the event loops of asyncio and of uvloop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from app.interfaces.bounded_transport import BoundedTransport


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_abort_after_connection_has_closed_does_nothing(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def abort_closed() -> None:
        lost = asyncio.Event()

        class Protocol(asyncio.Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                lost.set()

        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
        transport, _ = await asyncio.get_running_loop().create_connection(
            Protocol, *server.sockets[0].getsockname()[:2]
        )
        bounded = BoundedTransport(transport)
        bounded.limit_buffers()
        bounded.close()
        await lost.wait()
        bounded.abort()
        assert bounded.is_closing()
        server.close()

    run(abort_closed())
