"""The executor: works through the steps of a plan with tools."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.errors import ModelFailure, SandboxFailure, SandboxUnavailable, SearchFailure
from app.domain.external.llm import LLM, ModelReply
from app.domain.models.event import (
    Event,
    MessageEvent,
    PlanEvent,
    StepEvent,
    ToolCalledEvent,
    ToolCallingEvent,
    WaitEvent,
)
from app.domain.models.message import AssistantMessage, ToolCall, ToolMessage, UserMessage
from app.domain.models.plan import Step
from app.domain.models.tool import OpenCall, ToolResult
from app.domain.prompts import executing
from app.domain.services.agents.book import RunBook
from app.domain.services.agents.dialogue import MAX_TURNS, Dialogue, content_as, distinct_calls, parseable
from app.domain.services.tools.base import AskCall, BadArguments, BoundCall, CompleteCall, RunCall, Tool, ToolContext
from app.domain.services.tools.message import COMPLETE_STEP, CompleteStepInput, completion


@dataclass(frozen=True, slots=True)
class _Turn:
    """The calls of one model turn, sorted by what they need."""

    runs: tuple[tuple[ToolCall, RunCall], ...]
    ask: tuple[ToolCall, AskCall] | None
    complete: tuple[ToolCall, CompleteCall] | None


class Executor:
    """Asks the model, runs the tools that it calls, and checkpoints after every turn of either."""

    def __init__(self, book: RunBook, model: LLM, tools: Mapping[str, Tool], context: ToolContext) -> None:
        self._book = book
        self._dialogue = Dialogue(book, model, "work")
        self._tools = tools
        self._specs = tuple(tool.spec for tool in tools.values())
        self._context = context
        self._taken: set[str] | None = None
        # Calls that run at the same time are recorded one after the other: each builds on the checkpoint before it.
        self._recording = asyncio.Lock()

    async def run(self) -> None:
        """From phase `executing` to `answering`, or to `waiting` when the model asks the user.

        Raises:
            ModelFailure: the model does not answer, or not usably.
            Superseded: the user said more before the question was stored.
        """
        while self._book.state.phase == "executing":
            if self._book.state.model_turns >= MAX_TURNS:
                raise ModelFailure(f"the work was given up after {MAX_TURNS} turns of the model")
            reply = await self._dialogue.ask(self._specs)
            self._book.state = replace(self._book.state, model_turns=self._book.state.model_turns + 1)
            if reply.tool_calls:
                await self._carry_out(await self._sort(reply))
            elif (parsed := content_as(CompleteStepInput, reply.content, COMPLETE_STEP.spec.name)) is not None:
                await self._book.stage("work", AssistantMessage(content=reply.content))
                await self._complete(completion(parsed))
            else:
                await self._dialogue.correct(reply, executing.REMINDER, empty=executing.EMPTY)

    async def _sort(self, reply: ModelReply) -> _Turn:
        """Check every call; what cannot be used is answered here and now, so that no call stays without an answer."""
        calls = distinct_calls(reply.tool_calls, await self._known_ids())
        said = AssistantMessage(content=reply.content, tool_calls=tuple(parseable(call) for call in calls))
        await self._book.stage("work", said)
        runs: list[tuple[ToolCall, RunCall]] = []
        ask: tuple[ToolCall, AskCall] | None = None
        complete: tuple[ToolCall, CompleteCall] | None = None
        for call in calls:
            match self._bind(call, cut_off=reply.finish == "length"):
                case RunCall() as bound:
                    runs.append((call, bound))
                case AskCall() as bound if ask is None:
                    ask = (call, bound)
                case AskCall():
                    await self._answer(call, executing.ASKED_TWICE)
                case CompleteCall() as bound if complete is None:
                    complete = (call, bound)
                case CompleteCall():
                    await self._answer(call, executing.RECORDED)
                case str() as problem:
                    await self._answer(call, problem)
        if runs or ask or complete:
            self._dialogue.usable()
        else:
            self._dialogue.unusable()
        return _Turn(tuple(runs), ask, complete)

    def _bind(self, call: ToolCall, *, cut_off: bool) -> BoundCall | str:
        tool = self._tools.get(call.name)
        if tool is None:
            return executing.not_called(call.name, list(self._tools))
        try:
            return tool.bind(call.arguments, self._context)
        except BadArguments as error:
            return executing.CUT_OFF if cut_off else executing.not_run(str(error))

    async def _carry_out(self, turn: _Turn) -> None:
        if not (turn.runs or turn.ask or turn.complete):
            await self._book.commit()
            return
        for group in _groups(turn.runs):
            await self._run_group(group)
        if turn.ask is not None:
            if turn.complete is not None:
                await self._answer(turn.complete[0], executing.ASKED_TOO)
            await self._ask_user(*turn.ask)
        elif turn.complete is not None:
            await self._answer(turn.complete[0], executing.RECORDED)
            await self._complete(turn.complete[1])

    async def _run_group(self, group: Sequence[tuple[ToolCall, RunCall]]) -> None:
        opened = tuple(
            OpenCall(id=call.id, toolkit=bound.toolkit, function=call.name, args=bound.args) for call, bound in group
        )
        await self._book.commit(
            [ToolCallingEvent.of(item) for item in opened], state=replace(self._book.state, open_calls=opened)
        )
        if len(group) == 1:
            await self._run_one(opened[0], group[0][1])
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                for item, (_, bound) in zip(opened, group, strict=True):
                    tasks.create_task(self._run_one(item, bound))
        except BaseExceptionGroup as group_error:
            # Whoever handles a run's failure knows single errors; the first is the cause, the rest were cancelled.
            raise group_error.exceptions[0] from None

    async def _run_one(self, opened: OpenCall, bound: RunCall) -> None:
        try:
            result = await bound.run()
        except (SandboxFailure, SandboxUnavailable, SearchFailure) as error:
            result = ToolResult(success=False, text=f"Failed: {error}", message=str(error))
        async with self._recording:
            known, computer = (
                self._book.state.sandbox_instance,
                self._context.sandbox_instance or self._book.state.sandbox_instance,
            )
            note = executing.NEW_COMPUTER if known not in ("", computer) else ""
            await self._book.stage("work", ToolMessage(tool_call_id=opened.id, content=note + result.text))
            remaining = tuple(item for item in self._book.state.open_calls if item.id != opened.id)
            await self._book.commit_behind(
                [ToolCalledEvent.of(opened, result)],
                state=replace(self._book.state, open_calls=remaining, sandbox_instance=computer, crash_count=0),
            )

    async def _ask_user(self, call: ToolCall, bound: AskCall) -> None:
        events: list[Event] = [MessageEvent(role="assistant", content=bound.question), WaitEvent()]
        state = replace(self._book.state, phase="waiting", pending_question=call.id)
        await self._book.commit(events, state=state, ends=True)

    async def _complete(self, call: CompleteCall) -> None:
        plan = self._book.state.plan
        current = plan.running
        if current is None:  # a checkpoint always has one while executing; without it there is nothing to end
            self._book.state = replace(self._book.state, phase="answering")
            return
        ended = replace(current, status="completed" if call.success else "failed", result=call.result)
        plan = plan.with_step(ended)
        if call.pending is not None:
            plan = plan.with_pending(tuple(Step(id=i, description=text) for i, text in call.pending))
        events: list[Event] = [
            StepEvent(id=ended.id, description=ended.description, status=ended.status),
            PlanEvent.of(plan.steps),
        ]
        state = replace(self._book.state, plan=plan, phase="answering", crash_count=0)
        following = plan.next_pending
        if following is not None:
            following = replace(following, status="running")
            state = replace(state, plan=plan.with_step(following), phase="executing")
            events.append(StepEvent(id=following.id, description=following.description, status="running"))
            brief = executing.brief(state.plan, following, changed=call.pending is not None)
            await self._book.stage("work", UserMessage(content=brief))
        await self._book.commit(events, state=state)

    async def _answer(self, call: ToolCall, text: str) -> None:
        await self._book.stage("work", ToolMessage(tool_call_id=call.id, content=text))

    async def _known_ids(self) -> set[str]:
        if self._taken is None:
            said = (await self._book.thread("work")).since(0)
            self._taken = {
                call.id for message in said if isinstance(message, AssistantMessage) for call in message.tool_calls
            }
        return self._taken


def _groups(runs: Sequence[tuple[ToolCall, RunCall]]) -> list[list[tuple[ToolCall, RunCall]]]:
    """The calls in their order, neighbours that may run at the same time together."""
    groups: list[list[tuple[ToolCall, RunCall]]] = []
    for item in runs:
        if item[1].parallel and groups and groups[-1][-1][1].parallel:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
