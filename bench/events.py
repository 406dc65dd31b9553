"""Fill a store with sessions for the benchmarks that read them."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from app.domain.models.event import DoneEvent, Event, MessageEvent, TitleEvent, ToolCalledEvent
from app.domain.models.tool import OpenCall, ToolResult
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event

EVENTS_PER_COMMIT = 5_000
_LINE = "-rw-r--r-- 1 ubuntu ubuntu    4096 Jan  1 00:00 a-file-of-the-workspace.txt\n"


def sample(number: int) -> Event:
    """Return an event of about 1.2 KB: a command that listed a few files."""
    output = _LINE * 5
    call = OpenCall(
        id=f"call_{number}",
        toolkit="shell",
        function="shell_exec",
        args={"id": "main", "exec_dir": "~", "command": "ls"},
    )
    result = ToolResult(
        success=True,
        text=output,
        message="exit code 0",
        data={"session_id": "main", "status": "completed", "returncode": 0, "output": output},
        content={"console": [{"ps1": "ubuntu@sandbox:~$", "command": "ls", "output": output}]},
    )
    return ToolCalledEvent.of(call, result)


def session_of(count: int) -> list[Event]:
    """Return `count` events of one finished session, most of them tool calls."""
    opening: list[Event] = [MessageEvent(role="user", content="List the files."), TitleEvent(title="A list of files")]
    ending: list[Event] = [MessageEvent(role="assistant", content="There are many files."), DoneEvent()]
    return [*opening, *(sample(number) for number in range(count - 4)), *ending]


def fill(data_dir: Path, sessions: Mapping[str, int]) -> None:
    """Create `sessions` (id to number of events) in the SQLite store of `data_dir`."""
    asyncio.run(_fill(data_dir, sessions))


async def _fill(data_dir: Path, sessions: Mapping[str, int]) -> None:
    at = int(time.time()) - len(sessions)
    async with SqliteStore(data_dir, encode=encode_event, on_committed=lambda *_: None) as store:
        for later, (session_id, count) in enumerate(sessions.items()):
            await store.sessions.create(session_id, owner="", at=at + later)
            events = session_of(count)
            for start in range(0, count, EVENTS_PER_COMMIT):
                await store.event_log.commit(
                    session_id, Commit(timestamp=at + later, events=events[start : start + EVENTS_PER_COMMIT])
                )
