"""The API over fakes: the real routes and use cases, in-memory stores, and a worker that follows a script."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from app.application.services.audit import AuditTrail
from app.application.services.chat import ChatService
from app.application.services.desktop import DesktopService
from app.application.services.desktop_links import DesktopLinks
from app.application.services.export import ExportService
from app.application.services.inspect_sandbox import SandboxInspector
from app.application.services.limits import LimitService
from app.application.services.rates import RateService
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import SessionService
from app.application.services.streams import EventStreams
from app.application.services.tickets import TicketService
from app.domain.external.authenticator import Authenticator
from app.domain.external.llm import ModelCatalog
from app.domain.external.run_queue import Attempt
from app.domain.external.secrets import NoSecrets
from app.domain.models.event import DoneEvent, Event, MessageEvent, TitleEvent
from app.domain.models.limits import OwnerLimits, RateLimits
from app.domain.models.model_profile import ModelProfile
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.infrastructure.auth.tokens import NoLogin
from app.infrastructure.limits.memory import MemoryRateCounter
from app.infrastructure.queue.supervisor import InlineRunQueue
from app.infrastructure.streams.memory import MemoryFeed
from app.interfaces.api.services import Services, provide
from app.interfaces.authentication import RECHECK_SECONDS
from app.interfaces.http_connection import HttpConnection
from app.interfaces.metrics import Metrics
from app.interfaces.wire import WIRE_VIEWS, WireView, screenshot_address
from app.main import Application, set_up_app
from tests.fakes.memory_audit import MemoryAuditLog
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryScreenshots, MemoryStore
from tests.fakes.memory_tickets import MemoryTickets
from tests.fakes.scripted_llm import ScriptedLLM
from tests.support.sse import SseFrame, read_frames

API = "/api/v1/sessions"
"""Path of the session endpoints."""

NO_USAGE = {
    "model_calls": 0,
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "reasoning_tokens": 0,
    "completion_tokens": 0,
}
"""`usage` of a session without runs."""

COMMIT_TIME = 1_700_000_000
"""Timestamp of every event that the harness and its worker write."""


def default_script(message: str) -> list[Event]:
    """Return the events with which the worker answers a message."""
    return [TitleEvent(title="A title"), MessageEvent(role="assistant", content=f"You said: {message}"), DoneEvent()]


@dataclass
class ScriptedWorker:
    """A `RunWorker` that answers each message with the events of `script(message)`, one commit an event.

    While `gate` is clear, the worker stops before event number `gated_at` of its script and sets `waiting`.
    """

    store: MemoryStore
    script: Callable[[str], Sequence[Event]] = default_script
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    gated_at: int = 1
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, session_id: str, attempt: Attempt) -> None:
        checkpoint = await self.store.load_checkpoint(session_id)
        unread = await self.store.unread_messages(session_id, after=checkpoint.last_read_message)
        if not unread:
            return
        self.runs += 1
        last = unread[-1]
        for index, event in enumerate(self.script(last.content)):
            if index == self.gated_at and not self.gate.is_set():
                self.waiting.set()
                await self.gate.wait()
            done = isinstance(event, DoneEvent)
            commit = Commit(
                timestamp=COMMIT_TIME,
                events=[event],
                checkpoint=Checkpoint(last_read_message=last.number) if done else None,
                ends_after_message=last.number if done else None,
            )
            await self.store.commit(session_id, commit)
        self.finished.set()

    async def kill_open_calls(self, session_id: str) -> None:
        pass

    async def release(self, session_id: str) -> None:
        pass

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        await self.store.commit(
            session_id,
            Commit(timestamp=COMMIT_TIME, events=[DoneEvent()], checkpoint=Checkpoint(last_read_message=up_to)),
        )


class ApiHarness:
    """The application, the fakes behind it, and a client in front of it."""

    def __init__(
        self,
        *,
        heartbeat: float = 15.0,
        origins: Sequence[str] = (),
        wire_compat: str = "",
        authenticator: Authenticator | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
        limits: OwnerLimits | None = None,
        rates: RateLimits | None = None,
    ) -> None:
        self.feed = MemoryFeed()
        self.store = MemoryStore(on_committed=self.feed.publish)
        self.worker = ScriptedWorker(self.store)
        self.worker.gate.set()
        self.queue = InlineRunQueue(self.worker)
        self.sandboxes = MemorySandboxProvider()
        self.screenshots = ScreenshotService(
            sessions=self.store, screenshots=MemoryScreenshots(self.store), address=screenshot_address
        )
        self.now = COMMIT_TIME + 0.75
        """What the clock of the ticket service shows."""
        self.tickets = MemoryTickets(self.store)
        self.audit_log = MemoryAuditLog(self.store)
        self.audit = AuditTrail(self.audit_log)
        self.metrics = Metrics()
        self.models = ModelCatalog(
            models={
                profile.name: ScriptedLLM([], profile=profile)
                for profile in (
                    ModelProfile(name="main", model="m-1", context_tokens=32_000),
                    ModelProfile(name="fast", model="m-2", vision=True),
                )
            },
            default="main",
        )
        self.limits = LimitService(
            limits=limits or OwnerLimits(),
            sessions=self.store,
            event_log=self.store,
            now=lambda: int(self.now),
        )
        self.rates = RateService(rates or RateLimits(), MemoryRateCounter(), now=lambda: time.time())
        self.services = self._build_services(heartbeat, WIRE_VIEWS[wire_compat])
        self.app = Application(self.metrics, title="Anker", version="1", docs_url=None, redoc_url=None)
        set_up_app(
            self.app,
            authenticator or NoLogin(),
            admins=("admin",),
            on_refused=lambda _reason, client: self.audit.count_refused_login(client),
            recheck_seconds=recheck_seconds,
            allowed_origins=origins,
        )
        provide(self.app, self.services)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://anker")

    def _build_services(self, heartbeat: float, view: WireView) -> Services:
        store, feed, queue, sandboxes = self.store, self.feed, self.queue, self.sandboxes
        streams = EventStreams(store, feed)
        return Services(
            metrics=self.metrics,
            mask=NoSecrets(),
            gauges={"runs_active": lambda: queue.active, "streams_open": lambda: feed.subscriber_count},
            chat=ChatService(
                sessions=store,
                event_log=store,
                streams=streams,
                feed=feed,
                queue=queue,
                models=self.models,
                limits=self.limits,
                audit=self.audit,
            ),
            sessions=SessionService(
                sessions=store,
                event_log=store,
                streams=streams,
                feed=feed,
                queue=queue,
                browsers=MemoryBrowsers(),
                sandboxes=sandboxes,
                models=self.models,
                limits=self.limits,
                audit=self.audit,
            ),
            models=self.models,
            limits=self.limits,
            rates=self.rates,
            inspect_sandbox=SandboxInspector(
                sessions=store, event_log=store, sandboxes=sandboxes, feed=feed, audit=self.audit
            ),
            screenshots=self.screenshots,
            desktop=DesktopService(sessions=store, sandboxes=sandboxes, feed=feed, audit=self.audit),
            tickets=TicketService(sessions=store, tickets=self.tickets, now=lambda: self.now, audit=self.audit),
            links=DesktopLinks(sessions=store, key=b"key", now=lambda: self.now, audit=self.audit),
            audit=self.audit,
            export=ExportService(
                sessions=store,
                event_log=store,
                streams=streams,
                screenshots=MemoryScreenshots(store),
                sandboxes=sandboxes,
                audit_log=self.audit_log,
                audit=self.audit,
                versions={"anker": "1"},
                max_bytes=1000,
            ),
            checks={"store": store.check, "sandbox": sandboxes.check},
            end_streams=feed.close,
            heartbeat=heartbeat,
            view=view,
        )

    async def close(self) -> None:
        await self.queue.close()
        await self.audit.close()
        await self.client.aclose()
        self.feed.close()

    async def create_session(self) -> str:
        """Create a session and return its id."""
        return (await self.client.put(API)).json()["data"]["session_id"]

    async def commit_events(self, session_id: str, *events: Event) -> None:
        """Store `events` as a worker would."""
        await self.store.commit(session_id, Commit(timestamp=COMMIT_TIME, events=events))

    async def list_events(self, session_id: str, **query: Any) -> list[dict[str, Any]]:
        """Return the history of a session."""
        return (await self.client.get(f"{API}/{session_id}", params=query)).json()["data"]["events"]

    async def send_message(self, session_id: str, body: dict[str, Any] | None = None, **headers: str) -> list[SseFrame]:
        """Post to the chat endpoint and return the frames of the whole stream. The run must end by itself."""
        response = await self.client.post(f"{API}/{session_id}/chat", json=body or {}, headers=headers)
        assert response.status_code == 200, response.text
        return [frame async for frame in read_frames(response)]


@asynccontextmanager
async def serve(harness: ApiHarness) -> AsyncIterator[httpx.AsyncClient]:
    """Run a real server on the loopback device, which sends streams while they are made. Yield a client of it."""
    config = uvicorn.Config(
        harness.app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=3, http=HttpConnection
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield client
    harness.feed.close()
    await server.shutdown()
