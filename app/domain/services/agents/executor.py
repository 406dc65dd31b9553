"""The executor: carries out the steps of a plan with tools."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from app.domain.errors import SandboxFailure, SandboxUnavailable, SearchFailure
from app.domain.external.feed import Feed
from app.domain.external.llm import LLM, ModelReply
from app.domain.models.event import (
    DoneEvent,
    Event,
    MessageEvent,
    PlanEvent,
    RunUsage,
    StepEvent,
    ToolCalledEvent,
    ToolCallingEvent,
    WaitEvent,
)
from app.domain.models.message import AssistantMessage, ToolCall, ToolMessage, Usage, UserMessage
from app.domain.models.plan import Plan, Step
from app.domain.models.tool import Image, JsonObject, OpenCall, ToolResult, ToolSpec
from app.domain.prompts import correction, executing, planning
from app.domain.services.agents import circles
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.limits import RunLimits
from app.domain.services.agents.live_text import ArgumentListener, LiveText, StatusListener
from app.domain.services.agents.model_exchange import ModelExchange, parse_text_call
from app.domain.services.tools.arguments import BadArguments, is_complete
from app.domain.services.tools.base import (
    AskUserInput,
    BoundCall,
    CompleteStepInput,
    PlanChanges,
    RunCall,
    Tool,
    ToolContext,
)
from app.domain.services.tools.message import COMPLETE_STEP
from app.domain.services.tools.results import fit_result


@dataclass(slots=True)
class _Segment:
    """The valid calls of a turn that belong to one step. Only the last segment has no `complete`."""

    runs: list[tuple[ToolCall, RunCall]] = field(default_factory=list[tuple[ToolCall, RunCall]])
    ask: tuple[ToolCall, AskUserInput] | None = None
    complete: tuple[ToolCall, CompleteStepInput] | None = None

    @property
    def calls(self) -> list[ToolCall]:
        """All calls."""
        controls = [each[0] for each in (self.ask, self.complete) if each is not None]
        return [call for call, _ in self.runs] + controls


@dataclass(frozen=True, slots=True)
class _InvalidCall:
    """Why a call cannot run: for the model, and for the user if no call of several turns can."""

    told: str
    reason: str


@dataclass(slots=True)
class _Turn:
    """A turn of the model: its valid calls by step, and what every call of it led to."""

    segments: list[_Segment] = field(default_factory=lambda: [_Segment()])
    calls: Sequence[ToolCall] = ()
    results: dict[str, tuple[JsonObject | str, ToolResult]] = field(
        default_factory=dict[str, tuple[JsonObject | str, ToolResult]]
    )
    """Arguments and result of each call that ran or was invalid, by the call's ID."""
    problem: str = ""
    """Why the last invalid call cannot run, for the user."""

    @property
    def fingerprint(self) -> str:
        """Name of the turn, equal for turns that did the same (`circles.fingerprint`)."""
        return circles.fingerprint(
            [(call.name, *self.results[call.id]) for call in self.calls if call.id in self.results]
        )


class Executor:
    """Requests turns from the model, runs the tools that it calls, and commits after every tool call."""

    def __init__(
        self,
        checkpointer: RunCheckpointer,
        model: LLM,
        feed: Feed,
        tools: Mapping[str, Tool],
        context: ToolContext,
        limits: RunLimits,
    ) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "executor", limits)
        self._window = checkpointer.windows.of(model.profile)
        self._feed = feed
        self._status = StatusListener(feed, checkpointer.session_id)
        self._tools = tools
        self._specs = tuple(_spec(tool, parallel=model.profile.parallel_calls) for tool in tools.values())
        self._context = context
        self._limits = limits
        self._used_call_ids: set[str] | None = None
        # Parallel calls commit one after the other: each commit builds on the checkpoint before it.
        self._result_lock = asyncio.Lock()

    async def run(self) -> None:
        """Lead the run from phase `executing` to `answering`, or to `waiting` if the model asks the user.

        The phase becomes `idle` if the model answers the user together with completing the last step.

        Raises:
            ModelFailure: The model did not reply, or its replies were unusable.
            RunLimitReached: The run may not call the model any more.
            Superseded: A user message arrived before the question or the answer to the user was stored.
        """
        while self._checkpointer.checkpoint.phase == "executing":
            # Only the last step is completed with an answer to the user, which is published while it is written.
            if self._checkpointer.checkpoint.plan.next_pending is not None:
                await self._carry_out_reply(await self._exchange.request(self._specs, self._status))
                continue
            with closing(LiveText(self._feed, self._checkpointer.session_id, self._checkpointer.mask)) as live:
                listener = ArgumentListener(live, COMPLETE_STEP.spec.name, "answer")
                reply = await self._exchange.request(self._specs, listener)
                live.finish()
                await self._carry_out_reply(reply)

    async def _carry_out_reply(self, reply: ModelReply) -> None:
        if reply.tool_calls:
            turn = await self._read_turn(reply)
            if await self._carry_out(turn):
                await self._record_turn(turn)
        elif (parsed := parse_text_call(CompleteStepInput, reply.content, COMPLETE_STEP.spec.name)) is not None:
            await self._exchange.stage_part(reply)
            await self._complete_step(None, parsed)
        else:
            await self._exchange.correct_text(reply, executing.REMINDER, empty=executing.EMPTY)
            await self._record_turn(None)

    async def _read_turn(self, reply: ModelReply) -> _Turn:
        """Stage the model's turn and sort its calls. Invalid calls get their result here."""
        turn = _Turn(calls=await self._exchange.stage_turn(reply, used_ids=await self._call_ids()))
        for call in turn.calls:
            segment = turn.segments[-1]
            match self._bind(call, cut_off=reply.finish == "length"):
                case RunCall() as bound:
                    segment.runs.append((call, bound))
                case AskUserInput() as bound if segment.ask is None:
                    segment.ask = (call, bound)
                case AskUserInput():
                    await self._stage_result(call.id, executing.ASKED_TWICE)
                case CompleteStepInput() as bound if not _is_repeated(bound, turn.segments):
                    segment.complete = (call, bound)
                    turn.segments.append(_Segment())
                case CompleteStepInput():
                    await self._stage_result(call.id, executing.RECORDED)
                case _InvalidCall() as invalid:
                    turn.problem = invalid.reason
                    turn.results[call.id] = (call.arguments, ToolResult(success=False, text=invalid.told))
                    await self._stage_result(call.id, invalid.told)
        return turn

    def _bind(self, call: ToolCall, *, cut_off: bool) -> BoundCall | _InvalidCall:
        """Return the call with checked arguments, or the reason why it is invalid."""
        tool = self._tools.get(call.name)
        if tool is None:
            told = executing.unknown_function(call.name, list(self._tools))
            return _InvalidCall(told, f"it called the unknown function {call.name!r}")
        if cut_off and not is_complete(call.arguments):
            return _InvalidCall(correction.CUT_OFF, self._exchange.cut_off)
        try:
            return tool.bind(call.arguments, self._context)
        except BadArguments as error:
            return _InvalidCall(executing.invalid_call(str(error)), f"its call of {call.name} was invalid: {error}")

    async def _carry_out(self, turn: _Turn) -> bool:
        """Carry out the calls step by step: the tools first, then the question to the user or the end of the step.

        Return whether the turn belongs to one step, which still runs.
        """
        if not any(segment.calls for segment in turn.segments):
            self._exchange.count_unusable(turn.problem)
            await self._checkpointer.commit()
            return True
        self._exchange.unusable_replies = 0
        for position, segment in enumerate(turn.segments):
            for group in _parallel_groups(segment.runs):
                await self._run_group(group, turn)
            if not await self._finish_segment(segment, turn.segments[position + 1 :]):
                return False
        return len(turn.segments) == 1

    async def _finish_segment(self, segment: _Segment, following: Sequence[_Segment]) -> bool:
        """Ask the user or end the step. Return whether the following calls may run; if not, give them a result.

        A question to the user takes precedence over the end of its step, and over the end of the last step.
        """
        later = [call for each in following for call in each.calls]
        completed = None if segment.complete is None else segment.complete[0]
        if segment.ask is not None:
            await self._stage_results([*([] if completed is None else [completed]), *later], executing.ASKED_TOO)
            await self._ask_user(*segment.ask)
            return False
        if segment.complete is None or completed is None:
            return True
        plan = _with_changes(self._checkpointer.checkpoint.plan, segment.complete[1].plan_changes)[0]
        if plan.next_pending is None and any(each.ask for each in following):
            await self._stage_result(completed.id, executing.ASKED_TOO)
            return True
        return await self._complete_step(*segment.complete, later=later)

    async def _run_group(self, group: Sequence[tuple[ToolCall, RunCall]], turn: _Turn) -> None:
        """Commit the calls as open, then run them at the same time.

        The order matters: after a crash, a call that may have taken effect must be in the checkpoint.
        """
        opened = tuple(
            OpenCall(id=call.id, toolkit=bound.toolkit, function=call.name, args=bound.args) for call, bound in group
        )
        await self._checkpointer.commit(
            [ToolCallingEvent.of(call) for call in opened],
            checkpoint=replace(self._checkpointer.checkpoint, open_calls=opened),
        )
        if len(group) == 1:
            await self._run_call(opened[0], group[0][1], turn)
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                for call, (_, bound) in zip(opened, group, strict=True):
                    tasks.create_task(self._run_call(call, bound, turn))
        except BaseExceptionGroup as errors:
            # Callers handle single errors. The first one is the cause; it cancelled the other calls.
            raise errors.exceptions[0] from None

    async def _run_call(self, opened: OpenCall, bound: RunCall, turn: _Turn) -> None:
        """Run one call. Its result is committed in the background, while the model is asked for its next turn."""
        try:
            result = await self._context.shared.observer.run_tool(opened, bound.run)
        except (SandboxFailure, SandboxUnavailable, SearchFailure) as error:
            content = self._tools[opened.function].content_without_result(opened.args, str(error))
            result = ToolResult(success=False, text=f"Failed: {error}", message=str(error), content=content)
        turn.results[opened.id] = (opened.args, result)
        limit = self._window.result_chars(result.text)
        result = await fit_result(self._checkpointer.mask.mask(result), limit, opened.function, self._context)
        async with self._result_lock:
            checkpoint = self._checkpointer.checkpoint
            known_instance = checkpoint.sandbox_instance
            instance = self._context.sandbox_instance or known_instance
            note = executing.SANDBOX_REPLACED if known_instance not in ("", instance) else ""
            file = result.saved.file if result.saved is not None else ""
            await self._stage_result(opened.id, note + result.text, result.images, file)
            still_open = tuple(call for call in checkpoint.open_calls if call.id != opened.id)
            await self._checkpointer.commit_in_background(
                [ToolCalledEvent.of(opened, result)],
                checkpoint=replace(checkpoint, open_calls=still_open, sandbox_instance=instance, crash_count=0),
            )

    async def _ask_user(self, call: ToolCall, bound: AskUserInput) -> None:
        checkpoint = self._checkpointer.checkpoint
        await self._checkpointer.commit(
            [MessageEvent(role="assistant", content=bound.text), WaitEvent(usage=RunUsage.of(checkpoint.usage))],
            checkpoint=replace(
                checkpoint, phase="waiting", pending_question=call.id, usage=Usage(), usage_at_grant=Usage()
            ),
            ends_run=True,
        )

    async def _complete_step(
        self, call: ToolCall | None, ending: CompleteStepInput, *, later: Sequence[ToolCall] = ()
    ) -> bool:
        """End the running step and start the next one. Without a next one, answer the user or leave it to the answerer.

        The instruction for the next step is the result of `call`; without a call it is a message. Return whether
        `later`, the calls of the same turn that belong to the next step, may run; if not, they get a result.
        """
        checkpoint = self._checkpointer.checkpoint
        plan, note = _with_changes(checkpoint.plan, ending.plan_changes)
        if plan.running is None:  # Not reached: in phase `executing`, a step is always running.
            self._checkpointer.checkpoint = replace(checkpoint, phase="answering")
            return False
        ended = replace(plan.running, status="completed" if ending.success else "failed", result=ending.result)
        plan = plan.with_step(ended)
        events: list[Event] = [StepEvent.of(ended), PlanEvent.of(plan.steps)]
        checkpoint = replace(checkpoint, plan=plan, phase="answering", recent_turns=(), crash_count=0)
        text, refusal = executing.RECORDED, executing.NO_STEP_LEFT
        if plan.next_pending is not None:
            following = replace(plan.next_pending, status="running")
            events.append(StepEvent.of(following))
            plan = plan.with_step(following)
            checkpoint = replace(checkpoint, plan=plan, phase="executing", steps_started=checkpoint.steps_started + 1)
            text = executing.brief(plan, following, changed=ending.plan_changes is not None) + note
            refusal = executing.AT_LIMIT if self._limits.reached(checkpoint) else ""
        if refusal:
            await self._stage_results(later, refusal)
        if call is not None:
            await self._stage_result(call.id, text)
        elif plan.running is not None:
            await self._checkpointer.stage("executor", UserMessage(content=text))
        await self._checkpointer.commit(events, checkpoint=checkpoint)
        if plan.running is None and (answer := (ending.answer or "").strip()):
            await self._answer(answer)
        return not refusal

    async def _answer(self, text: str) -> None:
        """End the run with the answer that came with the last step."""
        checkpoint = self._checkpointer.checkpoint
        request = planning.ANSWER.format(results=planning.step_results(checkpoint.plan))
        await self._checkpointer.stage("planner", UserMessage(content=request), AssistantMessage(content=text))
        await self._checkpointer.commit(
            [MessageEvent(role="assistant", content=text), DoneEvent(usage=RunUsage.of(checkpoint.usage))],
            checkpoint=checkpoint.at_rest(),
            ends_run=True,
        )

    async def _record_turn(self, turn: _Turn | None) -> None:
        """Remember what a turn did, or that it was text. In a circle, tell the model, and finally end the step."""
        checkpoint = self._checkpointer.checkpoint
        if turn is not None and any(result.is_running for _, result in turn.results.values()):
            self._checkpointer.checkpoint = replace(checkpoint, recent_turns=())
            return
        fingerprint = circles.TEXT_TURN if turn is None else turn.fingerprint
        turns = (*checkpoint.recent_turns, fingerprint)[-circles.REMEMBERED_TURNS :]
        self._checkpointer.checkpoint = replace(checkpoint, recent_turns=turns)
        repetitions = circles.repetitions(turns)
        if repetitions >= circles.FAILED_AT:
            self._exchange.unusable_replies = 0
            ending = CompleteStepInput(success=False, result=executing.CIRCLE_ENDED, plan_changes=None, answer=None)
            await self._complete_step(None, ending)
        elif repetitions == circles.TOLD_AT > circles.repetitions(turns[:-1]):
            await self._checkpointer.stage("executor", UserMessage(content=executing.CIRCLE))

    async def _stage_results(self, calls: Sequence[ToolCall], text: str) -> None:
        for call in calls:
            await self._stage_result(call.id, text)

    async def _stage_result(self, call_id: str, text: str, images: tuple[Image, ...] = (), file: str = "") -> None:
        message = ToolMessage(tool_call_id=call_id, content=text, images=images, file=file)
        await self._checkpointer.stage("executor", message)

    async def _call_ids(self) -> set[str]:
        """Return the IDs of all calls in the transcript. The set is kept up to date by the caller."""
        if self._used_call_ids is None:
            messages = (await self._checkpointer.transcript("executor")).since(0)
            self._used_call_ids = {
                call.id for message in messages if isinstance(message, AssistantMessage) for call in message.tool_calls
            }
        return self._used_call_ids


def _spec(tool: Tool, *, parallel: bool) -> ToolSpec:
    """Return what the model reads of a tool. Only a model that makes several calls in a turn is encouraged to."""
    if not parallel or tool is not COMPLETE_STEP:
        return tool.spec
    return replace(tool.spec, description=f"{tool.spec.description} {executing.SEVERAL_CALLS}")


def _is_repeated(ending: CompleteStepInput, segments: Sequence[_Segment]) -> bool:
    """Return whether the call before this one was the same: a call that a model writes twice ends one step."""
    before = segments[-2].complete if len(segments) > 1 else None
    return before is not None and not segments[-1].calls and before[1] == ending


def _with_changes(plan: Plan, changes: PlanChanges | None) -> tuple[Plan, str]:
    """Return the plan with its pending steps changed, and a note for the model if it plans the same again and again."""
    if changes is None:
        return plan, ""
    done = Counter(_normalized(step.description) for step in plan.steps if step.status != "pending")
    counts = [done[_normalized(step.description)] + 1 for step in changes.steps]
    kept = (
        Step(id=step.id, description=step.description)
        for step, count in zip(changes.steps, counts, strict=True)
        if count < circles.FAILED_AT
    )
    note = f"\n{executing.SAME_STEP}" if max(counts, default=0) >= circles.TOLD_AT else ""
    return plan.with_pending(tuple(kept)), note


def _normalized(description: str) -> str:
    return " ".join(description.split()).casefold()


def _parallel_groups(runs: Sequence[tuple[ToolCall, RunCall]]) -> list[list[tuple[ToolCall, RunCall]]]:
    """Split the calls, in order, into groups that may run at the same time."""
    groups: list[list[tuple[ToolCall, RunCall]]] = []
    for item in runs:
        if item[1].parallel and groups and groups[-1][-1][1].parallel:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
