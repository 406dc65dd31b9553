"""The executor: carries out the steps of a plan with tools."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.domain.errors import ModelFailure, SandboxFailure, SandboxUnavailable, SearchFailure
from app.domain.external.feed import Feed
from app.domain.external.llm import LLM, ModelReply
from app.domain.models.event import (
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
from app.domain.models.plan import Step
from app.domain.models.tool import Image, OpenCall, ToolResult
from app.domain.prompts import executing
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.model_exchange import ModelExchange, StatusListener, parse_text_call
from app.domain.services.tools.arguments import BadArguments, is_complete
from app.domain.services.tools.base import (
    AskUserInput,
    BoundCall,
    CompleteStepInput,
    RunCall,
    Tool,
    ToolContext,
)
from app.domain.services.tools.message import COMPLETE_STEP
from app.domain.services.tools.results import fit_result

MAX_TURNS = 5_000
"""Maximum number of model turns of the executor in one run."""


@dataclass(slots=True)
class _ValidCalls:
    """The valid calls of one model turn, by kind."""

    runs: list[tuple[ToolCall, RunCall]] = field(default_factory=list[tuple[ToolCall, RunCall]])
    ask: tuple[ToolCall, AskUserInput] | None = None
    complete: tuple[ToolCall, CompleteStepInput] | None = None


class Executor:
    """Requests turns from the model, runs the tools that it calls, and commits after every tool call."""

    def __init__(
        self, checkpointer: RunCheckpointer, model: LLM, feed: Feed, tools: Mapping[str, Tool], context: ToolContext
    ) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "executor")
        self._window = checkpointer.windows.of(model.profile)
        self._listener = StatusListener(feed, checkpointer.session_id)
        self._tools = tools
        self._specs = tuple(tool.spec for tool in tools.values())
        self._context = context
        self._used_call_ids: set[str] | None = None
        # Parallel calls commit one after the other: each commit builds on the checkpoint before it.
        self._result_lock = asyncio.Lock()

    async def run(self) -> None:
        """Lead the run from phase `executing` to `answering`, or to `waiting` if the model asks the user.

        Raises:
            ModelFailure: The model did not reply, or its replies were unusable.
            Superseded: A user message arrived before the question to the user was stored.
        """
        checkpointer = self._checkpointer
        while checkpointer.checkpoint.phase == "executing":
            if checkpointer.checkpoint.model_turns >= MAX_TURNS:
                raise ModelFailure(f"given up: the task was not finished after {MAX_TURNS} turns of the model")
            reply = await self._exchange.request(self._specs, self._listener)
            checkpointer.checkpoint = replace(
                checkpointer.checkpoint, model_turns=checkpointer.checkpoint.model_turns + 1
            )
            if reply.tool_calls:
                await self._carry_out(await self._validate(reply))
            elif (parsed := parse_text_call(CompleteStepInput, reply.content, COMPLETE_STEP.spec.name)) is not None:
                await checkpointer.stage("executor", AssistantMessage(content=reply.content))
                await self._complete_step(parsed)
            else:
                await self._exchange.correct_text(reply, executing.REMINDER, empty=executing.EMPTY)

    async def _validate(self, reply: ModelReply) -> _ValidCalls:
        """Stage the model's turn and return its valid calls. Invalid calls get their result here."""
        valid = _ValidCalls()
        for call in await self._exchange.stage_turn(reply, used_ids=await self._call_ids()):
            match self._bind(call, cut_off=reply.finish == "length"):
                case RunCall() as bound:
                    valid.runs.append((call, bound))
                case AskUserInput() as bound if valid.ask is None:
                    valid.ask = (call, bound)
                case AskUserInput():
                    await self._stage_result(call.id, executing.ASKED_TWICE)
                case CompleteStepInput() as bound if valid.complete is None:
                    valid.complete = (call, bound)
                case CompleteStepInput():
                    await self._stage_result(call.id, executing.RECORDED)
                case str() as problem:
                    await self._stage_result(call.id, problem)
        return valid

    def _bind(self, call: ToolCall, *, cut_off: bool) -> BoundCall | str:
        """Return the call with checked arguments, or the reason why it is invalid."""
        tool = self._tools.get(call.name)
        if tool is None:
            return executing.unknown_function(call.name, list(self._tools))
        if cut_off and not is_complete(call.arguments):
            return executing.CUT_OFF
        try:
            return tool.bind(call.arguments, self._context)
        except BadArguments as error:
            return executing.invalid_call(str(error))

    async def _carry_out(self, calls: _ValidCalls) -> None:
        """Run the tools first. A question to the user takes precedence over completing the step."""
        if not (calls.runs or calls.ask or calls.complete):
            self._exchange.count_unusable()
            await self._checkpointer.commit()
            return
        self._exchange.unusable_replies = 0
        for group in _parallel_groups(calls.runs):
            await self._run_group(group)
        if calls.ask is not None:
            if calls.complete is not None:
                await self._stage_result(calls.complete[0].id, executing.ASKED_TOO)
            await self._ask_user(*calls.ask)
        elif calls.complete is not None:
            await self._stage_result(calls.complete[0].id, executing.RECORDED)
            await self._complete_step(calls.complete[1])

    async def _run_group(self, group: Sequence[tuple[ToolCall, RunCall]]) -> None:
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
            await self._run_call(opened[0], group[0][1])
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                for call, (_, bound) in zip(opened, group, strict=True):
                    tasks.create_task(self._run_call(call, bound))
        except BaseExceptionGroup as errors:
            # Callers handle single errors. The first one is the cause; it cancelled the other calls.
            raise errors.exceptions[0] from None

    async def _run_call(self, opened: OpenCall, bound: RunCall) -> None:
        """Run one call. Its result is committed in the background, while the model is asked for its next turn."""
        try:
            result = await bound.run()
        except (SandboxFailure, SandboxUnavailable, SearchFailure) as error:
            result = ToolResult(success=False, text=f"Failed: {error}", message=str(error))
        limit = self._window.result_chars(result.text)
        result = await fit_result(result, limit, opened.function, self._context)
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
            checkpoint=replace(checkpoint, phase="waiting", pending_question=call.id, usage=Usage()),
            ends_run=True,
        )

    async def _complete_step(self, call: CompleteStepInput) -> None:
        """End the running step and start the next one. Without a next one, the phase becomes `answering`."""
        checkpoint = self._checkpointer.checkpoint
        plan = checkpoint.plan
        if plan.running is None:  # Not reached: in phase `executing`, a step is always running.
            self._checkpointer.checkpoint = replace(checkpoint, phase="answering")
            return
        ended = replace(plan.running, status="completed" if call.success else "failed", result=call.result)
        plan = plan.with_step(ended)
        if (changes := call.plan_changes) is not None:
            plan = plan.with_pending(tuple(Step(id=step.id, description=step.description) for step in changes.steps))
        events: list[Event] = [StepEvent.of(ended), PlanEvent.of(plan.steps)]
        checkpoint = replace(checkpoint, plan=plan, phase="answering", crash_count=0)
        if plan.next_pending is not None:
            following = replace(plan.next_pending, status="running")
            events.append(StepEvent.of(following))
            checkpoint = replace(checkpoint, plan=plan.with_step(following), phase="executing")
            brief = executing.brief(checkpoint.plan, following, changed=changes is not None)
            await self._checkpointer.stage("executor", UserMessage(content=brief))
        await self._checkpointer.commit(events, checkpoint=checkpoint)

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


def _parallel_groups(runs: Sequence[tuple[ToolCall, RunCall]]) -> list[list[tuple[ToolCall, RunCall]]]:
    """Split the calls, in order, into groups that may run at the same time."""
    groups: list[list[tuple[ToolCall, RunCall]]] = []
    for item in runs:
        if item[1].parallel and groups and groups[-1][-1][1].parallel:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
