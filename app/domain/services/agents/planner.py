"""The planner: turns the user's words into a plan, or answers them at once."""

from dataclasses import replace
from typing import cast

from pydantic import ConfigDict, Field, field_validator

from app.domain.external.feed import Feed
from app.domain.external.llm import LLM, ModelReply
from app.domain.external.sandbox import SandboxProvider
from app.domain.models.event import DoneEvent, Event, MessageEvent, PlanEvent, StepEvent, TitleEvent
from app.domain.models.message import AssistantMessage, ToolMessage, UserMessage
from app.domain.models.plan import Plan, Step, distinct_ids
from app.domain.models.tool import ToolSpec
from app.domain.prompts import executing, planning
from app.domain.services.agents.book import RunBook
from app.domain.services.agents.dialogue import Dialogue, content_as, distinct_calls, parseable
from app.domain.services.agents.live import LiveText, PlanListener
from app.domain.services.tools.base import BadArguments, ToolInput, json_schema, parse_arguments
from app.domain.services.tools.message import StepInput

MAX_TITLE = 80


class CreatePlanInput(ToolInput):
    """Arguments of `create_plan`. The model is asked for all of them, but only `message` is needed: what else it
    leaves out can be derived, which costs no second call."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"required": ["title", "message", "goal", "steps"]})

    title: str = Field("", description="The conversation in at most six words")
    message: str = Field(min_length=1, description="To the user")
    goal: str = ""
    steps: list[StepInput] = Field(default_factory=list[StepInput], max_length=50)

    @field_validator("steps", mode="before")
    @classmethod
    def _plain_steps(cls, value: object) -> object:
        """Weak models write the steps as plain strings, or null for none."""
        if value is None:
            return []
        if isinstance(value, list):
            items = cast("list[object]", value)
            return [{"description": item} if isinstance(item, str) else item for item in items]
        return value


CREATE_PLAN = ToolSpec(name="create_plan", description=planning.DESCRIPTION, parameters=json_schema(CreatePlanInput))
_TOOLS = (CREATE_PLAN,)


class Planner:
    """Asks for a plan and writes it into the book: title, message, plan, and the first step's brief."""

    def __init__(self, book: RunBook, model: LLM, feed: Feed, sandboxes: SandboxProvider) -> None:
        self._book = book
        self._dialogue = Dialogue(book, model, "talk")
        self._feed = feed
        self._sandboxes = sandboxes

    async def run(self) -> None:
        """From phase `planning` to `executing`, or to `idle` when the answer needs no work.

        Raises:
            ModelFailure: no plan is to be had.
            Superseded: the user said more before a final answer was stored.
        """
        live = LiveText(self._feed, self._book.session_id)
        listener = PlanListener(live, lambda: self._sandboxes.warm(self._book.session_id))
        try:
            while True:
                reply = await self._dialogue.ask(_TOOLS, listener)
                plan = await self._understand(reply)
                if plan is not None:
                    await self._accept(plan)
                    return
                listener.restart()
        finally:
            live.close()

    async def _understand(self, reply: ModelReply) -> CreatePlanInput | None:
        if not reply.tool_calls:
            return await self._understand_text(reply)
        calls = distinct_calls(reply.tool_calls, set())
        chosen: CreatePlanInput | None = None
        answers: list[ToolMessage] = []
        for call in calls:
            problem = ""
            if call.name != CREATE_PLAN.name:
                problem = executing.not_called(call.name, [CREATE_PLAN.name])
            elif chosen is None:
                try:
                    chosen = parse_arguments(CreatePlanInput, call.arguments)
                except BadArguments as error:
                    problem = executing.CUT_OFF if reply.finish == "length" else executing.not_run(str(error))
            answers.append(ToolMessage(tool_call_id=call.id, content=problem or planning.ACCEPTED))
        said = AssistantMessage(content=reply.content, tool_calls=tuple(parseable(call) for call in calls))
        await self._book.stage("talk", said, *answers)
        if chosen is None:
            self._dialogue.unusable()
        return chosen

    async def _understand_text(self, reply: ModelReply) -> CreatePlanInput | None:
        parsed = content_as(CreatePlanInput, reply.content, CREATE_PLAN.name)
        if parsed is not None:
            await self._book.stage("talk", AssistantMessage(content=reply.content))
            return parsed
        if reply.content.strip() and self._dialogue.corrections:
            # Told once, and it still answers in prose: then the prose is the answer.
            await self._book.stage("talk", AssistantMessage(content=reply.content))
            return CreatePlanInput(title="", message=reply.content.strip())
        await self._dialogue.correct(reply, planning.REMINDER, empty=f"{planning.EMPTY} {planning.REMINDER}")
        return None

    async def _accept(self, plan: CreatePlanInput) -> None:
        state = self._book.state
        words = state.unplanned_text
        title = " ".join((plan.title.strip() or words.strip().partition("\n")[0]).split())[:MAX_TITLE]
        events: list[Event] = [TitleEvent(title=title), MessageEvent(role="assistant", content=plan.message)]
        if not plan.steps:
            idle = state.at_rest(last_read_message=state.last_read_message)
            await self._book.commit([*events, DoneEvent()], state=idle, ends=True)
            return
        steps = distinct_ids(tuple(Step(id=step.id, description=step.description) for step in plan.steps))
        first = Step(id=steps[0].id, description=steps[0].description, status="running")
        shown = PlanEvent.of(steps)
        made = Plan(goal=plan.goal or plan.message, steps=steps).with_step(first)
        events += [shown, StepEvent(id=first.id, description=first.description, status="running")]
        self._sandboxes.warm(self._book.session_id)
        await self._book.stage("work", UserMessage(content=executing.opening(words, made, first)))
        await self._book.commit(
            events,
            state=replace(
                state.at_rest(last_read_message=state.last_read_message),
                phase="executing",
                plan=made,
                model_turns=state.model_turns,
            ),
        )
