"""Plan and act: the state machine of a run.

    idle ──message──▶ planning ──steps──▶ executing ──last step──▶ answering ──▶ idle
                         │                  │    ▲                                ▲
                         └──answer only─────┼────┼────────────────────────────────┘
                                            ▼    │ the user's answer
                                          waiting┘

A run also waits when it has reached a limit. If a step is running, the next message continues it. If none is, the
message is planned for.

The state of a run is in its checkpoint and nowhere else. Continuing after a crash, reading a message that arrived
during the run, and continuing after the user's answer are therefore the same: load the checkpoint, close what is open,
and continue from the phase.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import assert_never

from app.domain.errors import AnkerError, RunGivenUp, RunLimitReached, SandboxFailure, SandboxUnavailable, Superseded
from app.domain.external.feed import Feed
from app.domain.external.llm import ModelCatalog
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.models.event import (
    DoneEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    PlanEvent,
    RunUsage,
    StepEvent,
    TitleEvent,
    ToolCalledEvent,
    WaitEvent,
)
from app.domain.models.message import AssistantMessage, ToolMessage, Usage, UserMessage
from app.domain.models.tool import JsonObject, OpenCall, ToolResult
from app.domain.prompts import executing, planning
from app.domain.repositories.event_log import EventLog, UnreadMessage
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.executor import Executor
from app.domain.services.agents.limits import RunLimits, rest_message
from app.domain.services.agents.planner import Answerer, Planner
from app.domain.services.agents.window import ContextWindows
from app.domain.services.tools.base import Tool, ToolContext, ToolDependencies

log = logging.getLogger(__name__)

CRASHED = "the service was restarted"
STORE_AWAY = "the service's store was away"
INTERRUPTED = "a new message from the user"
STOPPED = "stopped by the user"
PAUSED = "a limit of the run was reached"

MAX_CRASHES = 10
"""Maximum number of processes that may die during a run without any progress in between. Then it is given up."""

KILL_TIMEOUT_SECONDS = 0.7
"""Maximum time in seconds for killing what runs in the sandbox. It keeps a stop below its limit of one second."""

LOOK_TIMEOUT_SECONDS = 0.2
"""Maximum time in seconds for asking the sandbox what an interrupted call did."""

_MAX_UNREAD_CHARS = 400_000
"""Maximum number of characters of user messages in one commit.

A commit may contain a text up to three times, and a store accepts only a few MiB at once.
"""

_SUMMARIZED_MESSAGES = 24
"""Number of the executor's newest messages from which the summary of an interruption is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowDependencies(ToolDependencies):
    """The dependencies that all runs share, those of their tools included."""

    event_log: EventLog
    feed: Feed
    models: ModelCatalog
    tools: Mapping[str, Tool]
    limits: RunLimits = field(default_factory=RunLimits)
    windows: ContextWindows = field(default_factory=ContextWindows)
    mask: SecretMask = field(default_factory=NoSecrets)
    """Masks what the model and the tools return; `event_log` masks what is stored."""


class PlanActFlow:
    """One attempt at a session's run. It loads its state from the event log."""

    def __init__(self, dependencies: FlowDependencies, session_id: str, *, fencing_token: int | None = None) -> None:
        """Create the flow of one attempt. `fencing_token`: see `Commit.fencing_token`."""
        self._dependencies = dependencies
        self._context = ToolContext(session_id=session_id, shared=dependencies)
        self._checkpointer = RunCheckpointer(
            session_id,
            dependencies.event_log,
            fencing_token=fencing_token,
            windows=dependencies.windows,
            mask=dependencies.mask,
            observer=dependencies.observer,
        )

    async def run(self, reason: str = CRASHED, *, crashed: bool = False) -> None:
        """Continue from the checkpoint until the run waits for the user or ends.

        Args:
            reason: Why the previous attempt ended early.
            crashed: Whether the process of the previous attempt died.

        Raises:
            ModelFailure: The model failed for good; call `fail`.
            RunGivenUp: Too many processes died during this run; call `fail`.
            Superseded: A user message arrived while the run was ending or resting; call `run` again.
            StoreUnavailable: Nothing is lost; call `run` again when the store is available.
        """
        checkpointer = self._checkpointer
        try:
            await checkpointer.load()
            if crashed:
                await self._count_crash()
            await self._prepare(reason)
            try:
                await self._run_phases()
            except RunLimitReached as reached:
                await self._rest(reached)
        except Superseded:
            await checkpointer.store_usage()
            raise
        except asyncio.CancelledError:
            checkpointer.stop_retrying()
            with suppress(AnkerError):  # The event log has the outcome of the write. The cancellation takes precedence.
                await checkpointer.wait_for_pending()
            with suppress(AnkerError):
                await checkpointer.store_usage()
            raise
        finally:
            # The next attempt may load at once and must find everything that this one did.
            await checkpointer.wait_for_pending()

    async def kill_open_calls(self) -> None:
        """Kill what the open tool calls left running in the sandbox."""
        await self._checkpointer.load()
        if self._checkpointer.checkpoint.open_calls:
            await self._kill(everything=False)

    async def finish_stopped(self, *, up_to: int) -> None:
        """End the run because the user stopped it: kill everything, close what is open, and store `done`.

        Has no effect if the run has ended. `up_to`: number of the newest event when the user asked to stop.

        Raises:
            Superseded: A newer user message is stored; call `run`.
            StoreUnavailable: The store is unavailable. There are no retries, because the user is waiting.
        """
        self._checkpointer.stop_retrying()
        await self._checkpointer.load()
        await self._kill(everything=True)
        await self._end(STOPPED, DoneEvent(usage=self._usage), up_to=up_to)

    async def fail(self, error: str) -> None:
        """End the run with an `error` event.

        Raises:
            Superseded: A newer user message is stored; call `run`.
        """
        await self._checkpointer.load()
        await self._end(f"failed: {error}", ErrorEvent(error=error, usage=self._usage))

    @property
    def _usage(self) -> RunUsage:
        return RunUsage.of(self._checkpointer.checkpoint.usage)

    async def _run_phases(self) -> None:
        checkpointer, dependencies = self._checkpointer, self._dependencies
        models, name = dependencies.models, checkpointer.checkpoint.model
        if name and models.name_of(name) != name:
            log.warning(
                "the session's model profile was removed: using the default",
                extra={"model": name, "default": models.default},
            )
        planner, executor = models.planner_of(name), models.executor_of(name)
        self._context.vision = sees = executor.profile.vision
        tools = {name: tool for name, tool in dependencies.tools.items() if sees or not tool.needs_vision}
        feed, limits = dependencies.feed, dependencies.limits
        while True:
            match checkpointer.checkpoint.phase:
                case "planning":
                    await Planner(checkpointer, planner, feed, dependencies.sandboxes, limits).run()
                case "executing":
                    await Executor(checkpointer, executor, feed, tools, self._context, limits).run()
                case "answering":
                    await Answerer(checkpointer, planner, feed, limits).run()
                case "idle" | "waiting":
                    return
                case _ as never:
                    assert_never(never)

    async def _rest(self, limit: RunLimitReached) -> None:
        """Wait for the user because the run has reached `limit`. The checkpoint keeps what is left to do."""
        checkpointer = self._checkpointer
        text = rest_message(limit, checkpointer.checkpoint)
        await checkpointer.stage("planner", AssistantMessage(content=text))
        at_rest = replace(
            checkpointer.checkpoint, phase="waiting", usage=Usage(), usage_at_grant=Usage(), has_title_event=True
        )
        await checkpointer.commit(
            [*self._missing_title(), MessageEvent(role="assistant", content=text), WaitEvent(usage=self._usage)],
            checkpoint=at_rest,
            ends_run=True,
        )

    async def _kill(self, *, everything: bool) -> None:
        """Kill the open calls of the loaded checkpoint, or everything in the sandbox. Failures are only logged.

        A sandbox that does not respond in time is left alone: the user must not wait for it.
        """
        try:
            async with asyncio.timeout(KILL_TIMEOUT_SECONDS):
                sandbox = await self._dependencies.sandboxes.find(self._checkpointer.session_id)
                if sandbox is None:
                    return
                if everything:
                    await sandbox.kill_all()
                    return
                for call in self._checkpointer.checkpoint.open_calls:
                    # A checkpoint of another version may name a tool that does not exist.
                    tool = self._dependencies.tools.get(call.function)
                    if tool is not None and tool.abort is not None:
                        await tool.abort(call.args, sandbox)
        except (TimeoutError, SandboxFailure, SandboxUnavailable) as error:
            log.warning("what runs in the sandbox could not be killed", extra={"error": str(error)})
        except Exception:  # An unexpected error in a tool must not keep the user from stopping the run.
            log.exception("what runs in the sandbox could not be killed")

    async def _end(self, reason: str, last: Event, *, up_to: int | None = None) -> None:
        """Close what is open and store the last event, with user messages up to number `up_to` as read."""
        checkpointer = self._checkpointer
        unread = await self._read_unread(up_to)
        if checkpointer.checkpoint.phase == "idle" and not unread:
            return
        if up_to is not None and checkpointer.checkpoint.last_read_message > up_to:
            # The stop request arrived late or twice. It is not meant for the run of a newer message.
            raise Superseded("a newer message is stored, and the run continues with it")
        events = await self._close_open_work(reason, ends_run=True)
        last_read = checkpointer.checkpoint.last_read_message
        if unread:
            await self._stage_user_messages(unread)
            last_read = unread[-1].number
        events = [*self._missing_title(), *events, last]
        at_rest = replace(checkpointer.checkpoint.at_rest(), last_read_message=last_read, has_title_event=True)
        await checkpointer.commit(events, checkpoint=at_rest, ends_run=True)

    def _missing_title(self) -> list[Event]:
        """Return the `title` event of a session that has none: clients show the titles of events."""
        checkpoint = self._checkpointer.checkpoint
        return [] if checkpoint.has_title_event or not checkpoint.title else [TitleEvent(title=checkpoint.title)]

    async def _count_crash(self) -> None:
        """Store that a process died during this run, so that a run that kills every process does not go on for ever."""
        checkpointer, checkpoint = self._checkpointer, self._checkpointer.checkpoint
        if checkpoint.phase in ("idle", "waiting") and not await checkpointer.unread_messages():
            return
        if checkpoint.crash_count >= MAX_CRASHES:
            raise RunGivenUp(f"given up: the service crashed {checkpoint.crash_count} times without any progress")
        await checkpointer.commit(checkpoint=replace(checkpoint, crash_count=checkpoint.crash_count + 1))

    async def _prepare(self, reason: str) -> None:
        """Close what the previous attempt left open, read new messages, and choose the phase to continue from."""
        checkpointer = self._checkpointer
        unread = await self._read_unread()
        phase = checkpointer.checkpoint.phase
        if phase == "waiting" and unread and checkpointer.checkpoint.plan.running is not None:
            await self._resume_with_answer(unread)
        elif unread:
            events = await self._close_open_work(PAUSED if phase == "waiting" else reason, ends_run=False)
            await self._stage_user_messages(unread)
            # The limits are granted anew. A text that was read, but not planned for, is still to be planned for.
            planning_checkpoint = replace(
                checkpointer.checkpoint.at_rest(),
                phase="planning",
                usage=checkpointer.checkpoint.usage,
                usage_at_grant=checkpointer.checkpoint.usage,
                last_read_message=unread[-1].number,
                unplanned_text="\n".join(filter(None, (checkpointer.checkpoint.unplanned_text, _joined(unread)))),
            )
            if events:
                await checkpointer.commit(events, checkpoint=planning_checkpoint)
            else:
                checkpointer.checkpoint = planning_checkpoint
        elif phase == "executing":
            events = await self._close_open_calls(reason)
            if events:
                await checkpointer.commit(events, checkpoint=replace(checkpointer.checkpoint, open_calls=()))
        self._dependencies.observer.prepared(checkpointer.checkpoint, new_message=bool(unread))

    async def _read_unread(self, up_to: int | None = None) -> list[UnreadMessage]:
        """Return the unread user messages up to event number `up_to`.

        If they are too long for one commit, the older ones are committed here and only the newer ones are returned.
        """
        unread: list[UnreadMessage] = []
        size = 0
        for message in await self._checkpointer.unread_messages():
            if up_to is not None and message.number > up_to:
                break
            if unread and size + len(message.content) > _MAX_UNREAD_CHARS:
                await self._stage_user_messages(unread)
                await self._checkpointer.commit(
                    checkpoint=replace(self._checkpointer.checkpoint, last_read_message=unread[-1].number)
                )
                unread, size = [], 0
            unread.append(message)
            size += len(message.content)
        return unread

    async def _stage_user_messages(self, messages: Sequence[UnreadMessage]) -> None:
        texts = (planning.user_message(message.content) for message in messages)
        await self._checkpointer.stage("planner", *(UserMessage(content=text) for text in texts))

    async def _resume_with_answer(self, messages: Sequence[UnreadMessage]) -> None:
        """Give the user's answer to the executor, as the result of its question if it asked one, and continue there."""
        checkpointer = self._checkpointer
        text = planning.user_message(_joined(messages))
        question = checkpointer.checkpoint.pending_question
        checkpointer.checkpoint = replace(
            checkpointer.checkpoint,
            phase="executing",
            pending_question=None,
            last_read_message=messages[-1].number,
            usage_at_grant=checkpointer.checkpoint.usage,
            steps_started=0,
        )
        if question is None:
            await checkpointer.stage("executor", UserMessage(content=executing.resumed(text)))
        else:
            await checkpointer.stage("executor", ToolMessage(tool_call_id=question, content=text))
        await checkpointer.stage("planner", UserMessage(content=text))

    async def _close_open_work(self, reason: str, *, ends_run: bool) -> list[Event]:
        """Close open calls and the running step, and stage a summary for the planner. Return the events to store.

        A step that a new message interrupts has no event of its own, only the new plan: clients take a failed step for
        the end of the run.
        """
        checkpointer = self._checkpointer
        plan = checkpointer.checkpoint.plan
        if not plan.steps:
            return []
        events = await self._close_open_calls(reason)
        if plan.running is not None:
            failed = replace(plan.running, status="failed", result=f"interrupted: {reason}")
            plan = plan.with_step(failed)
            if ends_run:
                events.append(StepEvent.of(failed))
            events.append(PlanEvent.of(plan.steps))
        messages = (await checkpointer.transcript("executor")).since(-_SUMMARIZED_MESSAGES)
        summary = planning.interruption_summary(reason, plan, messages)
        await checkpointer.stage("planner", UserMessage(content=summary))
        return events

    async def _close_open_calls(self, reason: str) -> list[Event]:
        """Stage a result for every unanswered call. Return the `called` events of the calls that were announced.

        Providers refuse a transcript with an unanswered call, and clients would show an announced call for ever.
        """
        checkpointer = self._checkpointer
        opened = {call.id: call for call in checkpointer.checkpoint.open_calls}
        for call in (await checkpointer.transcript("executor")).unanswered:
            text = executing.interrupted_call(reason) if call.id in opened else executing.skipped_call(reason)
            await checkpointer.stage("executor", ToolMessage(tool_call_id=call.id, content=text))
        message = f"interrupted: {reason}"
        contents = await self._contents_so_far(opened.values(), message)
        return [
            ToolCalledEvent.of(call, ToolResult(success=False, text="", message=message, content=content))
            for call, content in zip(opened.values(), contents, strict=True)
        ]

    async def _contents_so_far(self, calls: Iterable[OpenCall], reason: str) -> list[JsonObject | None]:
        """Return the `content` of open calls as far as it is known. Do not wait for a sandbox that does not respond."""
        contents: list[JsonObject | None] = []
        for call in calls:
            # A checkpoint of another version may name a tool that does not exist.
            tool = self._dependencies.tools.get(call.function)
            content = None if tool is None else tool.content_without_result(call.args, reason)
            if tool is not None and tool.content_so_far is not None:
                with suppress(TimeoutError, SandboxFailure, SandboxUnavailable):
                    async with asyncio.timeout(LOOK_TIMEOUT_SECONDS):
                        sandbox = await self._dependencies.sandboxes.peek(self._checkpointer.session_id)
                        content = (await tool.content_so_far(call.args, sandbox) if sandbox else None) or content
            contents.append(content)
        return contents


def _joined(messages: Sequence[UnreadMessage]) -> str:
    return "\n".join(message.content for message in messages)
