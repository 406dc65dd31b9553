"""Property tests: interrupted, stopped and crashed runs keep the event log and the transcripts whole."""

import asyncio
import json
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.application.services.audit import AuditTrail
from app.application.services.chat import ChatRequest, ChatService
from app.application.services.limits import LimitService
from app.application.services.sessions import SessionService
from app.application.services.streams import EventStreams
from app.domain.errors import StoreUnavailable
from app.domain.external.llm import ModelCatalog, ModelReply, ModelRequest
from app.domain.models.limits import OwnerLimits
from app.domain.models.message import AssistantMessage, Message, ToolMessage, Transcript, UserMessage
from app.domain.models.model_profile import ModelProfile
from app.domain.repositories.event_log import Commit
from app.domain.services.agents import checkpointer
from app.infrastructure.llm.request_encoder import Dialect, RequestEncoder
from app.infrastructure.queue import supervisor
from app.infrastructure.queue.supervisor import InlineRunQueue
from app.infrastructure.streams.memory import MemoryFeed
from tests.fakes.memory_audit import MemoryAuditLog
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import (
    RecordedRequest,
    ScriptedLLM,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import make_worker
from tests.support.invariants import check_log
from tests.support.strict_server import violation

PROFILE = ModelProfile(model="m")
PLAN = creates_plan("one", "two")
COMPLETION = completes_step()
COMPLETE = ("complete_step", {"success": True, "result": "r"})
EXECUTOR_REPLIES: Sequence[ModelReply] = (
    runs_command("work"),
    runs_command("hang"),
    calls(("file_read", {"file": "x"}), ("file_find_by_name", {"path": "~", "glob": "*"}), ("file_read", "{")),
    calls(("message_notify_user", {"text": "news"}), ("complete_step", {"success": True, "result": "r"})),
    calls(COMPLETE, ("shell_exec", {"id": "a", "exec_dir": "~", "command": "next"}), ids=["same", "same"]),
    calls(COMPLETE, ("shell_exec", {"id": "a", "exec_dir": "~", "command": "hang"})),
    calls(COMPLETE, ("file_read", {"file": "x"}), ("complete_step", {"success": True, "result": "2", "answer": "A"})),
    calls(COMPLETE, ("file_read", {"file": "x"}), ("message_ask_user", {"text": "Which?"})),
    completes_step(answer="All is done."),
    completes_step(success=False, result="no", plan_changes={"steps": [{"id": "2", "description": "two"}]}),
    COMPLETION,
    COMPLETION,
    calls(("message_ask_user", {"text": "Which?"})),
    calls(("nonsense", "{"), ids=["same"]),
    says("prose"),
    says(""),
)


class SlowStore(MemoryStore):
    """A store that waits within calls, so that a cancellation can arrive in the middle of a write."""

    rng: random.Random
    failure_rate = 0.0
    """Probability that a commit fails. Half of the failed commits are stored nevertheless."""

    async def commit(self, session_id: str, commit: Commit) -> Any:
        await yield_to_others(self.rng.randrange(4))
        fails, stored = self.rng.random() < self.failure_rate, self.rng.random() < 0.5
        records = await super().commit(session_id, commit) if stored or not fails else []
        await yield_to_others(self.rng.randrange(4))
        if fails:
            raise StoreUnavailable("the connection broke")
        return records

    async def unread_messages(self, session_id: str, *, after: int) -> Any:
        await yield_to_others(self.rng.randrange(3))
        return await super().unread_messages(session_id, after=after)


async def yield_to_others(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


class CrashableService:
    """A service in memory that can crash and start again over the same store."""

    def __init__(self, seed: int, *, failure_rate: float) -> None:
        self.rng, self.model_rng = random.Random(seed), random.Random(seed)
        self.feed = MemoryFeed()
        self.store = SlowStore(on_committed=self.feed.publish)
        self.store.rng, self.store.failure_rate = self.rng, failure_rate
        self.sandboxes = MemorySandboxProvider()
        self.model = ScriptedLLM(self.reply)
        self.encoder = RequestEncoder(profile=PROFILE, temperature=0)
        self.random_replies_left = 400
        self.messages_sent = 0
        self.start()

    async def open_session(self) -> None:
        """Create the session, whose command `hang` hangs until it is released."""
        sandbox = await self.sandboxes.acquire("s")
        sandbox.script("hang", hangs=True)
        await self.store.create("s", owner="", at=0)

    def start(self) -> None:
        worker = make_worker(self.store, self.model, sandboxes=self.sandboxes, feed=self.feed)
        self.queue = InlineRunQueue(worker)
        streams = EventStreams(self.store, self.feed)
        models = ModelCatalog(models={"default": self.model}, default="default")
        limits = LimitService(limits=OwnerLimits(), sessions=self.store, event_log=self.store)
        audit = AuditTrail(MemoryAuditLog(self.store))
        self.sessions = SessionService(
            sessions=self.store,
            event_log=self.store,
            streams=streams,
            feed=self.feed,
            queue=self.queue,
            browsers=MemoryBrowsers(),
            sandboxes=self.sandboxes,
            models=models,
            limits=limits,
            audit=audit,
        )
        self.chat = ChatService(
            sessions=self.store,
            event_log=self.store,
            streams=streams,
            feed=self.feed,
            queue=self.queue,
            models=models,
            limits=limits,
            audit=audit,
        )

    async def reply(self, request: RecordedRequest) -> ModelReply:
        """Reply at random; once `random_replies_left` is used up, only with what brings the run to its end."""
        check_conversation(request.messages)
        body = self.encoder.encode(ModelRequest(transcript=request.transcript), Dialect())
        restarted = RequestEncoder(profile=PROFILE, temperature=0)
        assert restarted.encode(ModelRequest(transcript=Transcript(request.messages)), Dialect()) == body
        assert not violation(orjson.loads(body))
        await yield_to_others(self.rng.randrange(6))
        self.random_replies_left -= 1
        at_random = self.random_replies_left > 0
        match request.kind:
            case "planning":
                return PLAN if self.model_rng.random() < 0.8 and at_random else creates_plan()
            case "answering":
                return self.model_rng.choice([says("Done."), says("")]) if at_random else says("Done.")
            case "executing":
                return self.model_rng.choice(EXECUTOR_REPLIES) if at_random else COMPLETION

    async def crash(self) -> None:
        await self.queue.close()
        self.start()
        for session_id in await self.store.list_active():
            self.queue.resume(session_id, owner="")

    async def send_message(self) -> None:
        self.messages_sent += 1
        await self.chat.chat("s", ChatRequest(message=f"message-{self.messages_sent};"), owner="")

    async def finish(self, *, random_replies: int = 0) -> None:
        """Wait until the session is completed. Release commands that hang and answer questions."""
        self.random_replies_left = random_replies
        async with asyncio.timeout(20):
            while True:
                tasks = [run.task for run in self.queue._supervisor._runs.values() if run.task]
                if tasks:
                    for sandbox in self.sandboxes.sandboxes.values():
                        for shell in list(sandbox._shells):
                            sandbox.release(shell)
                    await asyncio.wait(tasks, timeout=0.01)
                elif (await self.store.get("s", owner="")).status == "waiting":
                    await self.send_message()
                else:
                    return


def check_conversation(messages: Sequence[Message]) -> None:
    """Check what every provider requires: each call is followed by exactly one result."""
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            open_calls.remove(message.tool_call_id)
            continue
        assert not open_calls
        if isinstance(message, AssistantMessage):
            assert message.content or message.tool_calls
            open_calls = {call.id for call in message.tool_calls}
            assert len(open_calls) == len(message.tool_calls)
    assert not open_calls


EXAMPLES = int(os.environ.get("EXAMPLES", "150"))
"""Number of random examples for each property."""

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["send", "send", "stop", "crash", "wait"]), st.integers(0, 60)), min_size=1, max_size=8
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32), actions=ACTIONS)
def test_log_and_transcripts_stay_whole_through_messages_stops_and_crashes(
    seed: int, actions: list[tuple[str, int]]
) -> None:
    asyncio.run(check_session(seed, actions))


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32), actions=ACTIONS)
def test_log_and_transcripts_stay_whole_when_the_store_also_fails(seed: int, actions: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "_RETRY_SECONDS", 0)
        patch.setattr(supervisor, "_RETRY_SECONDS", (0,))
        asyncio.run(check_session(seed, actions, failure_rate=0.3))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_failing_store_costs_no_tool_call_and_no_model_turn(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "_RETRY_SECONDS", 0)
        reliable = asyncio.run(run_to_completion(seed, failure_rate=0))
        failing = asyncio.run(run_to_completion(seed, failure_rate=0.3))
    assert reliable == failing


async def run_to_completion(seed: int, *, failure_rate: float) -> tuple[list[str], int]:
    """Carry out one run. Return its events, sorted because parallel calls end in any order, and the replies left."""
    service = CrashableService(seed, failure_rate=failure_rate)
    await service.open_session()
    await service.send_message()
    await service.finish(random_replies=30)
    records = await service.store.read("s", after=0, limit=100_000)
    await service.queue.close()
    return sorted(f"{record.type} {without_position(record.data)}" for record in records), service.random_replies_left


def without_position(data: bytes) -> str:
    event = json.loads(data)
    return json.dumps({name: value for name, value in event.items() if name not in ("event_id", "timestamp")})


async def check_session(seed: int, actions: list[tuple[str, int]], *, failure_rate: float = 0) -> None:
    """Perform the actions, finish the session, and check its log and transcripts."""
    service = CrashableService(seed, failure_rate=failure_rate)
    await service.open_session()
    await service.send_message()
    for action, delay in actions:
        await yield_to_others(delay)
        match action:
            case "send":
                await service.send_message()
            case "stop":
                with suppress(StoreUnavailable):
                    await service.sessions.stop("s", owner="")
            case "crash":
                await service.crash()
    await service.finish()
    records = await service.store.read("s", after=0, limit=100_000)
    check_log([{"event": record.type, "data": json.loads(record.data)} for record in records])
    assert (await service.store.get("s", owner="")).status == "completed"
    planner_transcript = await service.store.load_transcript("s", "planner")
    check_conversation(planner_transcript)
    check_conversation(await service.store.load_transcript("s", "executor"))
    # A summary of an interruption may quote a message once more.
    read = [
        message.content
        for message in planner_transcript
        if isinstance(message, UserMessage) and "<interrupted>" not in message.content
    ]
    for number in range(1, service.messages_sent + 1):
        assert " ".join(read).count(f"message-{number};") == 1, read
    await service.queue.close()
