"""A service for the API's tests: the real routes and use cases over fakes, and a worker that writes what it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from app.application.services.chat import ChatService
from app.application.services.desktop import DesktopService
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import SessionService
from app.application.services.streams import EventStreams
from app.application.services.tickets import TicketService
from app.domain.external.run_queue import Attempt
from app.domain.models.event import DoneEvent, Event, MessageEvent, TitleEvent
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.infrastructure.queue.inline import InlineRunQueue
from app.infrastructure.streams.memory.feed import MemoryFeed
from app.interfaces.api.install import install
from app.interfaces.api.services import Services, provide
from app.interfaces.metrics import Metrics
from app.interfaces.wire import screenshot_address
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryScreenshots, MemoryStore
from tests.fakes.memory_tickets import MemoryTickets

API = "/api/v1/sessions"


def answer(words: str) -> list[Event]:
    return [TitleEvent(title="A title"), MessageEvent(role="assistant", content=f"You said: {words}"), DoneEvent()]


@dataclass
class ScriptedWorker:
    """A `RunWorker` that answers each message with `script(message)`, one commit an event.

    While `gate` is clear it stops before the event of number `gated_at` in its script, and counts that in `waiting`.
    """

    store: MemoryStore
    script: Callable[[str], Sequence[Event]] = answer
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    gated_at: int = 1
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, session_id: str, attempt: Attempt) -> None:
        state = await self.store.load_checkpoint(session_id)
        words = await self.store.unread_messages(session_id, after=state.last_read_message)
        if not words:
            return
        self.runs += 1
        consumed = words[-1].number
        for index, event in enumerate(self.script(words[-1].content)):
            if index == self.gated_at and not self.gate.is_set():
                self.waiting.set()
                await self.gate.wait()
            ends = consumed if isinstance(event, DoneEvent) else None
            run = Checkpoint(last_read_message=consumed) if isinstance(event, DoneEvent) else None
            await self.store.commit(
                session_id, Commit(timestamp=1_700_000_000, events=[event], checkpoint=run, ends_after_message=ends)
            )
        self.finished.set()

    async def abort(self, session_id: str, *, everything: bool) -> None:
        pass

    async def forget(self, session_id: str) -> None:
        pass

    async def stop(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        await self.store.commit(
            session_id,
            Commit(timestamp=1_700_000_000, events=[DoneEvent()], checkpoint=Checkpoint(last_read_message=up_to)),
        )


@dataclass(frozen=True)
class Frame:
    """A Server-Sent Event as a client sees it; a comment has only `comment`."""

    event: str = ""
    id: str | None = None
    data: Any = None
    comment: str | None = None


async def frames(response: httpx.Response) -> AsyncIterator[Frame]:
    """The frames of a stream as they come."""
    lines: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            assert name not in lines, "data must be one line"
            lines[name] = value.removeprefix(" ")
        elif "" in lines:
            yield Frame(comment=lines.pop(""))
        elif lines:
            assert lines.keys() <= {"event", "id", "data"}
            yield Frame(event=lines["event"], id=lines.get("id"), data=json.loads(lines["data"]))
            lines = {}
    assert not lines, "the stream ended in the middle of a frame"


class House:
    """The application, what is behind it, and a client in front of it."""

    def __init__(self, *, heartbeat: float = 15.0, origins: Sequence[str] = ()) -> None:
        self.feed = MemoryFeed()
        self.store = MemoryStore(on_committed=self.feed.publish)
        self.worker = ScriptedWorker(self.store)
        self.worker.gate.set()
        self.queue = InlineRunQueue(self.worker)
        self.sandboxes = MemorySandboxProvider()
        streams = EventStreams(self.store, self.feed)
        chat = ChatService(sessions=self.store, event_log=self.store, streams=streams, feed=self.feed, queue=self.queue)
        sessions = SessionService(
            sessions=self.store,
            event_log=self.store,
            streams=streams,
            feed=self.feed,
            queue=self.queue,
            sandboxes=self.sandboxes,
            browsers=MemoryBrowsers(),
        )
        self.screenshots = ScreenshotService(
            sessions=self.store, screenshots=MemoryScreenshots(self.store), address=screenshot_address
        )
        self.now = 1_700_000_000.75
        self.tickets = MemoryTickets(self.store)
        self.metrics = Metrics()
        self.services = Services(
            metrics=self.metrics,
            gauges={"runs_active": lambda: self.queue.active, "streams_open": lambda: self.feed.followers},
            chat=chat,
            sessions=sessions,
            screenshots=self.screenshots,
            desktop=DesktopService(sessions=self.store, sandboxes=self.sandboxes, feed=self.feed),
            tickets=TicketService(sessions=self.store, tickets=self.tickets, now=lambda: self.now),
            checks={"store": self.store.check, "sandbox": self.sandboxes.check},
            end_streams=self.feed.close,
            heartbeat=heartbeat,
        )
        self.app = FastAPI(title="Anker", version="1")
        install(self.app, self.metrics, allowed_origins=origins)
        provide(self.app, self.services)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://anker")

    async def close(self) -> None:
        await self.queue.close()
        await self.client.aclose()
        self.feed.close()

    async def new(self) -> str:
        """A new session's id."""
        return (await self.client.put(API)).json()["data"]["session_id"]

    async def write(self, session_id: str, *events: Event) -> None:
        await self.store.commit(session_id, Commit(timestamp=1_700_000_000, events=events))

    async def events(self, session_id: str, **query: Any) -> list[dict[str, Any]]:
        """The session's history."""
        return (await self.client.get(f"{API}/{session_id}", params=query)).json()["data"]["events"]

    async def say(self, session_id: str, body: dict[str, Any] | None = None, **headers: str) -> list[Frame]:
        """A whole chat stream, for runs that end by themselves; comments left out."""
        answer = await self.client.post(f"{API}/{session_id}/chat", json=body or {}, headers=headers)
        assert answer.status_code == 200, answer.text
        return [frame async for frame in frames(answer) if frame.comment is None]


@asynccontextmanager
async def served(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """The house behind a real server on the loopback device: streams are sent while they are made."""
    config = uvicorn.Config(house.app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=3)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield client
    house.feed.close()
    await server.shutdown()
