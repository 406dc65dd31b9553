"""Plan and act: the state machine of a run.

    idle ──words──▶ planning ──steps──▶ executing ──last step──▶ answering ──▶ idle
                       │                  │    ▲                               ▲
                       └──plain answer────┼────┼───────────────────────────────┘
                                          ▼    │ the user's answer
                                        waiting┘

Where a run stands is in its checkpoint and nowhere else. So going on after a crash, reading a message that came in
between, and resting for an answer are one and the same thing: load, put the books in order, go on from the phase.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import assert_never

from app.domain.errors import AnkerError, RunGivenUp, SandboxFailure, SandboxUnavailable, Superseded
from app.domain.external.feed import Feed
from app.domain.external.llm import LLM
from app.domain.models.event import DoneEvent, ErrorEvent, Event, PlanEvent, StepEvent, ToolCalledEvent
from app.domain.models.message import ToolMessage, UserMessage
from app.domain.models.tool import ToolResult
from app.domain.prompts import digest, executing, planning
from app.domain.repositories.event_log import EventLog
from app.domain.services.agents.answerer import Answerer
from app.domain.services.agents.book import RunBook
from app.domain.services.agents.executor import Executor
from app.domain.services.agents.planner import Planner
from app.domain.services.tools.base import Tool, ToolContext

log = logging.getLogger(__name__)

CRASHED = "the service was restarted"
STORE_AWAY = "the service's store was away"
INTERRUPTED = "a new message from the user"
STOPPED = "stopped by the user"

MAX_DEATHS = 10
"""A run is given up when it has cost so many processes their lives without getting on in between."""

ABORT_SECONDS = 0.7
"""How long ending a command may take; with it, Stop stays below its limit of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowParts:
    """What every run is made with."""

    event_log: EventLog
    feed: Feed
    model: LLM
    tools: Mapping[str, Tool]


class PlanActFlow:
    """One session's run. Make a new one for each attempt; it reads everything from the event_log."""

    def __init__(self, parts: FlowParts, context: ToolContext, *, fencing_token: int | None = None) -> None:
        """`fencing_token`: see `Commit.fencing_token`."""
        self._parts = parts
        self._context = context
        self._book = RunBook(context.session_id, parts.event_log, fencing_token=fencing_token)

    async def abort(self, *, everything: bool) -> None:
        """Kill what the tool calls under way left running in the sandbox; with `everything`, all that runs there.

        A sandbox that does not answer within a second is left to itself: the user must not wait for it.
        """
        await self._book.load()
        opened = self._book.state.open_calls
        if not opened and not everything:
            return
        try:
            async with asyncio.timeout(ABORT_SECONDS):
                sandbox = await self._context.sandboxes.find(self._context.session_id)
                if sandbox is None:
                    return
                for call in opened:
                    if (tool := self._parts.tools.get(call.function)) is not None:  # a checkpoint may be older than us
                        await tool.abort(call.args, sandbox)
                if everything:
                    await sandbox.kill_all()
        except (TimeoutError, SandboxFailure, SandboxUnavailable) as error:
            log.warning("what a cut short call left running could not be ended", extra={"error": str(error)})

    async def run(self, reason: str = CRASHED, *, crashed: bool = False) -> None:
        """Go on from the checkpoint until the run rests or ends. `reason`: why the last attempt did not get there;
        `crashed`: its process died.

        Raises:
            ModelFailure: the model failed for good; call `fail`.
            RunGivenUp: too many processes died with it; call `fail`.
            Superseded: the user said more while the run was ending; call `run` again.
            StoreUnavailable: nothing is lost; call `run` again when the store is back.
        """
        try:
            await self._book.load()
            if crashed:
                await self._count_death()
            await self._prepare(reason)
            await self._go_on()
        except asyncio.CancelledError:
            self._book.hurry()
            with suppress(
                AnkerError
            ):  # what became of the write is in the event_log; that the run was cut short is not
                await self._book.settle()
            raise
        finally:
            # Whoever goes on from the event_log, perhaps in the next instant, must find there all that was done.
            await self._book.settle()

    async def _go_on(self) -> None:
        book, parts = self._book, self._parts
        while True:
            match book.state.phase:
                case "planning":
                    await Planner(book, parts.model, parts.feed, self._context.sandboxes).run()
                case "executing":
                    await Executor(book, parts.model, parts.tools, self._context).run()
                case "answering":
                    await Answerer(book, parts.model, parts.feed).run()
                case "idle" | "waiting":
                    return
                case _ as never:
                    assert_never(never)

    async def stop(self, *, up_to: int) -> None:
        """End the run at the user's wish: everything open is closed and `done` written. Nothing, when it has ended.

        `up_to`: number of the newest event when the user said stop.

        Raises:
            Superseded: the user said something after that; call `run`.
            StoreUnavailable: at once, since the user waits.
        """
        self._book.hurry()
        await self._end(STOPPED, DoneEvent(), up_to=up_to)

    async def fail(self, error: str) -> None:
        """End the run with an `error` that the user can read.

        Raises:
            Superseded: the user said more; call `run`.
        """
        await self._end(f"failed: {error}", ErrorEvent(error=error))

    async def _end(self, reason: str, last: Event, *, up_to: int | None = None) -> None:
        book = self._book
        await book.load()
        unread = await self._unread(up_to)
        if book.state.phase == "idle" and not unread:
            return
        if up_to is not None and book.state.last_read_message > up_to:
            # A stop may be heard late, or twice: it is not for the run of words that were said after it.
            raise Superseded("the user said more after that, and the run goes on with it")
        events = await self._close_open(reason)
        if unread:
            await self._stage_words(unread)
        consumed = unread[-1][0] if unread else book.state.last_read_message
        await book.commit([*events, last], state=book.state.at_rest(last_read_message=consumed), ends=True)

    async def _count_death(self) -> None:
        """Write down that a process died with this run, so that one that kills every process cannot go on for ever."""
        state = self._book.state
        if state.phase in ("idle", "waiting") and not await self._book.unread():
            return
        if state.crash_count >= MAX_DEATHS:
            raise RunGivenUp(f"given up: the service died {state.crash_count} times in this work without getting on")
        await self._book.commit(state=replace(state, crash_count=state.crash_count + 1))

    async def _prepare(self, reason: str) -> None:
        """Put the books in order and choose the phase."""
        book = self._book
        unread = await self._unread()
        words = "\n".join(text for _, text in unread)
        if book.state.phase == "waiting" and unread:
            await self._resume(words, unread[-1][0])
        elif unread:
            events = await self._close_open(reason)
            await self._stage_words(unread)
            state = replace(book.state.at_rest(last_read_message=unread[-1][0]), phase="planning", unplanned_text=words)
            if events:
                await book.commit(events, state=state)
            book.state = state
        elif book.state.phase == "executing":
            events = await self._close_calls(reason)
            if events:
                await book.commit(events, state=replace(book.state, open_calls=()))

    async def _unread(self, up_to: int | None = None) -> list[tuple[int, str]]:
        """Number and text of what the user said, up to number `up_to`, and the agent has not read. When that is more
        than can be written down together with what follows from it, the older part is written down at once."""
        now: list[tuple[int, str]] = []
        size = 0
        for number, text in await self._book.unread():
            if up_to is not None and number > up_to:
                break
            if now and size + len(text) > _WORDS_AT_ONCE:
                await self._stage_words(now)
                await self._book.commit(state=replace(self._book.state, last_read_message=now[-1][0]))
                now, size = [], 0
            now.append((number, text))
            size += len(text)
        return now

    async def _stage_words(self, unread: Sequence[tuple[int, str]]) -> None:
        await self._book.stage("talk", *(UserMessage(content=planning.user_words(text)) for _, text in unread))

    async def _resume(self, words: str, number: int) -> None:
        book = self._book
        asked = book.state.pending_question
        book.state = replace(book.state, phase="executing", pending_question=None, last_read_message=number)
        if asked is None:
            await book.stage("work", UserMessage(content=planning.user_words(words)))
        else:
            await book.stage("work", ToolMessage(tool_call_id=asked, content=planning.user_words(words)))
        await book.stage("talk", UserMessage(content=planning.user_words(words)))

    async def _close_open(self, reason: str) -> list[Event]:
        """Close calls and the running step, and leave the planner a note of what was done."""
        book = self._book
        plan = book.state.plan
        if not plan.steps:
            return []
        events = await self._close_calls(reason)
        running = plan.running
        if running is not None:
            failed = replace(running, status="failed", result=f"cut short: {reason}")
            plan = plan.with_step(failed)
            events.append(StepEvent(id=failed.id, description=failed.description, status="failed"))
            events.append(PlanEvent.of(plan.steps))
        work = (await book.thread("work")).since(-_RECENT)
        await book.stage("talk", UserMessage(content=digest.interruption(reason, plan, work)))
        return events

    async def _close_calls(self, reason: str) -> list[Event]:
        """Give every call without an answer one, and every announced call its end: providers refuse a conversation
        with an unanswered call, and clients would show it as running for ever."""
        book = self._book
        opened = {call.id: call for call in book.state.open_calls}
        for call in (await book.thread("work")).unanswered:
            told = executing.cut_short(reason) if call.id in opened else executing.not_started(reason)
            await book.stage("work", ToolMessage(tool_call_id=call.id, content=told))
        result = ToolResult(success=False, text="", message=f"interrupted: {reason}")
        return [ToolCalledEvent.of(call, result) for call in opened.values()]


_WORDS_AT_ONCE = 400_000
"""Characters. They are written down up to three times in one change, and a store takes some MiB at once."""

_RECENT = 24
"""Messages of the work transcript that a note about an interruption looks at."""
