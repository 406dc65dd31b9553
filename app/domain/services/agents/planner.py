"""The agents that talk to the user: the planner plans the work, and the answerer reports its results.

Both use the transcript `planner`, and publish what the model writes while it is writing.
"""

from dataclasses import replace

from pydantic import ConfigDict, Field

from app.domain.external.feed import Feed
from app.domain.external.llm import LLM, ModelReply
from app.domain.external.sandbox import SandboxProvider
from app.domain.models.event import (
    DoneEvent,
    Event,
    MessageEvent,
    PlanEvent,
    RunUsage,
    StepEvent,
    TitleEvent,
)
from app.domain.models.message import ToolMessage, UserMessage
from app.domain.models.plan import Plan, Step, with_distinct_ids
from app.domain.models.session import title_of
from app.domain.models.tool import ToolSpec
from app.domain.prompts import correction, executing, planning
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.limits import RunLimits
from app.domain.services.agents.live_text import LiveText, PlanListener, StatusListener
from app.domain.services.agents.model_exchange import ModelExchange, parse_text_call
from app.domain.services.tools.arguments import BadArguments, is_complete, parse_arguments
from app.domain.services.tools.base import OptionalText, StepInput, Steps, Text, ToolInput
from app.domain.services.tools.schema import json_schema


class CreatePlanInput(ToolInput):
    """Arguments of `create_plan`.

    The schema asks the model for all fields. Only `message` is required here: the others can be derived without a
    second model call.
    """

    model_config = ConfigDict(extra="ignore", json_schema_extra={"required": ["title", "message", "goal", "steps"]})

    title: OptionalText = Field("", description="The conversation in at most six words")
    message: Text = Field(min_length=1, description="To the user")
    goal: OptionalText = ""
    steps: Steps = Field(default_factory=list[StepInput])


CREATE_PLAN = ToolSpec(name="create_plan", description=planning.DESCRIPTION, parameters=json_schema(CreatePlanInput))
_TOOLS = (CREATE_PLAN,)


class Planner:
    """Requests a plan from the model and stores it: title, message, steps, and the instruction for the first step."""

    def __init__(
        self, checkpointer: RunCheckpointer, model: LLM, feed: Feed, sandboxes: SandboxProvider, limits: RunLimits
    ) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "planner", limits)
        self._feed = feed
        self._sandboxes = sandboxes

    async def run(self) -> None:
        """Lead the run from phase `planning` to `executing`, or to `idle` if no work is needed.

        Raises:
            ModelFailure: The model did not return a usable plan.
            Superseded: A user message arrived before a final answer was stored.
        """
        session_id = self._checkpointer.session_id
        live = LiveText(self._feed, session_id, self._checkpointer.mask)
        listener = PlanListener(live, on_steps=lambda: self._sandboxes.warm(session_id))
        try:
            while True:
                reply = await self._exchange.request(_TOOLS, listener)
                plan = await self._parse(reply)
                if plan is not None:
                    live.finish()
                    await self._accept(plan)
                    return
                listener.restart()
        finally:
            live.close()

    async def _parse(self, reply: ModelReply) -> CreatePlanInput | None:
        """Stage the reply. Return its plan, or None after staging what is wrong with it."""
        if not reply.tool_calls:
            return await self._parse_text(reply)
        plan: CreatePlanInput | None = None
        unusable = ""
        for call in await self._exchange.stage_turn(reply, used_ids=set()):
            problem = ""
            if call.name != CREATE_PLAN.name:
                problem = executing.unknown_function(call.name, [CREATE_PLAN.name])
                unusable = unusable or f"it called the unknown function {call.name!r}"
            elif reply.finish == "length" and not is_complete(call.arguments):
                problem, unusable = correction.CUT_OFF, self._exchange.cut_off
            elif plan is None:
                try:
                    plan = parse_arguments(CreatePlanInput, call.arguments, name=call.name)
                except BadArguments as error:
                    problem = executing.invalid_call(str(error))
                    unusable = f"its call of create_plan was invalid: {error}"
            result = ToolMessage(tool_call_id=call.id, content=problem or planning.ACCEPTED)
            await self._checkpointer.stage("planner", result)
        if plan is None:
            self._exchange.count_unusable(unusable)
        return plan

    async def _parse_text(self, reply: ModelReply) -> CreatePlanInput | None:
        plan = parse_text_call(CreatePlanInput, reply.content, CREATE_PLAN.name)
        if plan is None and reply.content.strip() and self._exchange.unusable_replies and not reply.text_calls:
            # The model was corrected before and still replies with text: accept the text as the answer.
            text = await self._exchange.stage_text(reply, StatusListener(self._feed, self._checkpointer.session_id))
            return CreatePlanInput(title="", message=text.strip())
        if plan is None:
            empty = f"{planning.EMPTY} {planning.REMINDER}"
            await self._exchange.correct_text(reply, planning.REMINDER, empty=empty)
        else:
            await self._exchange.stage_part(reply)
        return plan

    async def _accept(self, plan: CreatePlanInput) -> None:
        await self._checkpointer.reload_given_title()
        checkpoint = replace(self._checkpointer.checkpoint, has_title_event=True)
        text = checkpoint.unplanned_text
        title = checkpoint.given_title or title_of(plan.title) or title_of(text)
        events: list[Event] = [TitleEvent(title=title), MessageEvent(role="assistant", content=plan.message)]
        at_rest = checkpoint.at_rest()
        if not plan.steps:
            done = DoneEvent(usage=RunUsage.of(checkpoint.usage))
            await self._checkpointer.commit([*events, done], checkpoint=at_rest, ends_run=True)
            return
        self._sandboxes.warm(self._checkpointer.session_id)
        steps = with_distinct_ids(tuple(Step(id=step.id, description=step.description) for step in plan.steps))
        first = replace(steps[0], status="running")
        started = Plan(goal=plan.goal or plan.message, steps=steps).with_step(first)
        events += [PlanEvent.of(steps), StepEvent.of(first)]
        await self._checkpointer.stage("executor", UserMessage(content=executing.opening(text, started, first)))
        await self._checkpointer.commit(
            events,
            checkpoint=replace(
                at_rest,
                phase="executing",
                plan=started,
                usage=checkpoint.usage,
                usage_at_grant=checkpoint.usage_at_grant,
                steps_started=1,
            ),
        )


class Answerer:
    """Writes the final answer and publishes it while the model writes."""

    def __init__(self, checkpointer: RunCheckpointer, model: LLM, feed: Feed, limits: RunLimits) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "planner", limits)
        self._window = checkpointer.windows.of(model.profile)
        self._feed = feed

    async def run(self) -> None:
        """Lead the run from phase `answering` to `idle`.

        Raises:
            ModelFailure: The model did not return a usable answer.
            Superseded: A user message arrived before the answer was stored.
        """
        checkpointer = self._checkpointer
        if not checkpointer.checkpoint.answer_requested:
            plan = self._window.clip_results(checkpointer.checkpoint.plan, self._window.tokens // 3)
            results = planning.step_results(plan)
            await checkpointer.stage("planner", UserMessage(content=planning.ANSWER.format(results=results)))
            checkpointer.checkpoint = replace(checkpointer.checkpoint, answer_requested=True)
        live = LiveText(self._feed, checkpointer.session_id, checkpointer.mask)
        try:
            text = await self._write(live)
            live.finish()
            done = DoneEvent(usage=RunUsage.of(checkpointer.checkpoint.usage))
            await checkpointer.commit(
                [MessageEvent(role="assistant", content=text), done],
                checkpoint=checkpointer.checkpoint.at_rest(),
                ends_run=True,
            )
        finally:
            live.close()

    async def _write(self, live: LiveText) -> str:
        while True:
            reply = await self._exchange.request((), live)
            if reply.content.strip():
                return (await self._exchange.stage_text(reply, live)).strip()
            live.restart()
            if reply.tool_calls:
                self._exchange.count_unusable("it called functions instead of writing the answer")
                for call in await self._exchange.stage_turn(replace(reply, content=""), used_ids=set()):
                    refusal = ToolMessage(tool_call_id=call.id, content=planning.TEXT_ONLY)
                    await self._checkpointer.stage("planner", refusal)
            else:
                await self._exchange.correct_text(reply, planning.TEXT_ONLY, empty=planning.EMPTY)
