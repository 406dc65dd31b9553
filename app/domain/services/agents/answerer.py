"""The answerer: writes the final answer to the user from the results of the steps."""

from app.domain.external.feed import Feed
from app.domain.external.llm import LLM
from app.domain.models.event import DoneEvent, MessageEvent
from app.domain.models.message import AssistantMessage, ToolMessage, UserMessage
from app.domain.prompts import planning
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.live_text import LiveText
from app.domain.services.agents.model_exchange import ModelExchange, storable, with_distinct_call_ids


class Answerer:
    """Writes the final answer and publishes it while the model writes."""

    def __init__(self, checkpointer: RunCheckpointer, model: LLM, feed: Feed) -> None:
        self._checkpointer = checkpointer
        self._exchange = ModelExchange(checkpointer, model, "planner")
        self._feed = feed

    async def run(self) -> None:
        """Lead the run from phase `answering` to `idle`.

        Raises:
            ModelFailure: The model did not return a usable answer.
            Superseded: A user message arrived before the answer was stored.
        """
        checkpointer = self._checkpointer
        results = planning.step_results(checkpointer.checkpoint.plan)
        await checkpointer.stage("planner", UserMessage(content=planning.ANSWER.format(results=results)))
        live = LiveText(self._feed, checkpointer.session_id)
        try:
            text = await self._write(live)
            await checkpointer.stage("planner", AssistantMessage(content=text))
            await checkpointer.commit(
                [MessageEvent(role="assistant", content=text), DoneEvent()],
                checkpoint=checkpointer.checkpoint.at_rest(last_read_message=checkpointer.checkpoint.last_read_message),
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
                calls = tuple(storable(call) for call in with_distinct_call_ids(reply.tool_calls, set()))
                self._exchange.count_unusable()
                await self._checkpointer.stage(
                    "planner",
                    AssistantMessage(tool_calls=calls),
                    *(ToolMessage(tool_call_id=call.id, content=planning.TEXT_ONLY) for call in calls),
                )
            else:
                await self._exchange.correct_text(reply, planning.TEXT_ONLY, empty=planning.EMPTY)
