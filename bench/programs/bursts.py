"""The service with one more route, `GET /bench/burst/SESSION/EVENTS/EACH`, which stores events.

The route stores EVENTS events of 1.2 KB in the session, EACH per commit, as fast as the store accepts them. Settings
come from the environment. `SqliteStore` is replaced by a subclass that keeps its instance, because only the composition
root has access to the store.
"""

import time
from typing import Any

from app import providers
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.main import create_app
from bench.events import sample
from bench.programs.serving import serve

_opened: list[SqliteStore] = []


class _Store(SqliteStore):
    async def open(self) -> None:
        await super().open()
        _opened.append(self)


class WithBursts:
    """The service with the additional route."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Respond to a request, as the ASGI specification says."""
        path = scope.get("path", "")
        if not path.startswith("/bench/burst/"):
            await self._app(scope, receive, send)
            return
        session_id, events, each = path.split("/")[3:]
        changes = [
            Commit(timestamp=int(time.time()), events=[sample(number) for number in range(start, start + int(each))])
            for start in range(0, int(events), int(each))
        ]
        for change in changes:
            await _opened[0].event_log.commit(session_id, change)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})


def main() -> None:
    """Serve until SIGTERM."""
    providers.SqliteStore = _Store
    serve(WithBursts(create_app()))


if __name__ == "__main__":
    main()
