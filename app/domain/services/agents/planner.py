"""The agents that talk to the user: the planner plans the work, and the answerer reports its results.

Both use the transcript `planner`, and publish what the model writes while it is writing.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import cast
from uuid import uuid4

from pydantic import ConfigDict, Field
from pydantic_core import from_json

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
    TextDelta,
    TitleEvent,
)
from app.domain.models.message import AssistantMessage, ToolMessage, UserMessage
from app.domain.models.plan import Plan, Step, with_distinct_ids
from app.domain.models.tool import ToolSpec
from app.domain.prompts import executing, planning
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.model_exchange import ModelExchange, StatusListener, parse_text_call
from app.domain.services.tools.arguments import BadArguments, is_complete, parse_arguments
from app.domain.services.tools.base import StepInput, Steps, Text, ToolInput
from app.domain.services.tools.schema import json_schema

MAX_TITLE = 80
"""Maximum length of a session title in characters."""

_FIRST_STEP = re.compile(r'"steps"\s*:\s*\[\s*\{')


class CreatePlanInput(ToolInput):
    """Arguments of `create_plan`.

    The schema asks the model for all fields. Only `message` is required here: the others can be derived without a
    second model call.
    """

    model_config = ConfigDict(extra="ignore", json_schema_extra={"required": ["title", "message", "goal", "steps"]})

    title: Text = Field("", description="The conversation in at most six words")
    message: Text = Field(min_length=1, description="To the user")
    goal: Text = ""
    steps: Steps = Field(default_factory=list[StepInput])


CREATE_PLAN = ToolSpec(name="create_plan", description=planning.DESCRIPTION, parameters=json_schema(CreatePlanInput))
_TOOLS = (CREATE_PLAN,)


class LiveText(StatusListener):
    """Publishes a growing message to the session's subscribers. Close it once the message is stored or abandoned."""

    def __init__(self, feed: Feed, session_id: str) -> None:
        super().__init__(feed, session_id)
        self._message_id = uuid4().hex

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`."""
        self._feed.publish_delta(self._session_id, TextDelta(self._message_id, delta))

    def restart(self) -> None:
        """Implement `ReplyListener.restart`."""
        self._feed.end_delta(self._session_id)
        self._message_id = uuid4().hex

    def close(self) -> None:
        """End the message."""
        self._feed.end_delta(self._session_id)


class PlanListener:
    """Publishes the `message` of a plan while the plan is being written, and reports the beginning of its first step.

    `on_steps` is called once, when it is known that the plan has steps.
    """

    def __init__(self, live: LiveText, on_steps: Callable[[], None]) -> None:
        self._live = live
        self._on_steps = on_steps
        self._arguments = ""
        self._published = 0
        self._message_complete = False
        self._steps_seen = False

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`. Text is not a plan and is not published before it is understood."""

    def arguments(self, name: str, delta: str) -> None:
        """Implement `ReplyListener.arguments`."""
        self._arguments += delta
        if not self._message_complete:
            self._publish_message()
        if not self._steps_seen and _FIRST_STEP.search(self._arguments):
            self._steps_seen = True
            self._on_steps()

    def restart(self) -> None:
        """Implement `ReplyListener.restart`."""
        self._arguments, self._published, self._message_complete = "", 0, False
        self._live.restart()

    def waiting(self, text: str, retry_in: float | None) -> None:
        """Implement `ReplyListener.waiting`."""
        self._live.waiting(text, retry_in)

    def _publish_message(self) -> None:
        try:
            parsed: object = from_json(self._arguments, allow_partial="trailing-strings")
        except ValueError:
            return  # A key is incomplete; the next piece completes it.
        fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
        message = fields.get("message")
        if isinstance(message, str) and len(message) > self._published:
            self._live.text(message[self._published :])
            self._published = len(message)
        # Once another field follows the message, the message is complete and need not be parsed again.
        self._message_complete = message is not None and next(reversed(fields)) != "message"


class Planner:
    """Requests a plan from the model and stores it: title, message, steps, and the instruction for the first step."""

    def __init__(self, checkpointer: RunCheckpointer, model: LLM, feed: Feed, sandboxes: SandboxProvider) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "planner")
        self._feed = feed
        self._sandboxes = sandboxes

    async def run(self) -> None:
        """Lead the run from phase `planning` to `executing`, or to `idle` if no work is needed.

        Raises:
            ModelFailure: The model did not return a usable plan.
            Superseded: A user message arrived before a final answer was stored.
        """
        session_id = self._checkpointer.session_id
        live = LiveText(self._feed, session_id)
        listener = PlanListener(live, on_steps=lambda: self._sandboxes.warm(session_id))
        try:
            while True:
                reply = await self._exchange.request(_TOOLS, listener)
                plan = await self._parse(reply)
                if plan is not None:
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
        for call in await self._exchange.stage_turn(reply, used_ids=set()):
            problem = ""
            if call.name != CREATE_PLAN.name:
                problem = executing.unknown_function(call.name, [CREATE_PLAN.name])
            elif reply.finish == "length" and not is_complete(call.arguments):
                problem = executing.CUT_OFF
            elif plan is None:
                try:
                    plan = parse_arguments(CreatePlanInput, call.arguments, name=call.name)
                except BadArguments as error:
                    problem = executing.invalid_call(str(error))
            result = ToolMessage(tool_call_id=call.id, content=problem or planning.ACCEPTED)
            await self._checkpointer.stage("planner", result)
        if plan is None:
            self._exchange.count_unusable()
        return plan

    async def _parse_text(self, reply: ModelReply) -> CreatePlanInput | None:
        plan = parse_text_call(CreatePlanInput, reply.content, CREATE_PLAN.name)
        if plan is None and reply.content.strip() and self._exchange.unusable_replies:
            # The model was corrected before and still replies with text: accept the text as the answer.
            plan = CreatePlanInput(title="", message=reply.content.strip())
        if plan is None:
            empty = f"{planning.EMPTY} {planning.REMINDER}"
            await self._exchange.correct_text(reply, planning.REMINDER, empty=empty)
        else:
            await self._checkpointer.stage("planner", AssistantMessage(content=reply.content))
        return plan

    async def _accept(self, plan: CreatePlanInput) -> None:
        checkpoint = self._checkpointer.checkpoint
        text = checkpoint.unplanned_text
        title = " ".join((plan.title.strip() or text.strip().partition("\n")[0]).split())[:MAX_TITLE]
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
                model_turns=checkpoint.model_turns,
                usage=checkpoint.usage,
            ),
        )


class Answerer:
    """Writes the final answer and publishes it while the model writes."""

    def __init__(self, checkpointer: RunCheckpointer, model: LLM, feed: Feed) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "planner")
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
        live = LiveText(self._feed, checkpointer.session_id)
        try:
            text = await self._write(live)
            await checkpointer.stage("planner", AssistantMessage(content=text))
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
            text = reply.content.strip()
            if text:
                return text
            live.restart()
            if reply.tool_calls:
                self._exchange.count_unusable()
                for call in await self._exchange.stage_turn(replace(reply, content=""), used_ids=set()):
                    refusal = ToolMessage(tool_call_id=call.id, content=planning.TEXT_ONLY)
                    await self._checkpointer.stage("planner", refusal)
            else:
                await self._exchange.correct_text(reply, planning.TEXT_ONLY, empty=planning.EMPTY)
