"""The answerer: tells the user, in one message, what came of the plan."""

from app.domain.external.feed import Feed
from app.domain.external.llm import LLM
from app.domain.models.event import DoneEvent, MessageEvent
from app.domain.models.message import AssistantMessage, ToolMessage, UserMessage
from app.domain.prompts import digest, planning
from app.domain.services.agents.book import RunBook
from app.domain.services.agents.dialogue import Dialogue, distinct_calls, parseable
from app.domain.services.agents.live import LiveText


class Answerer:
    """Writes the final answer from the results of the steps, streaming it as it comes."""

    def __init__(self, book: RunBook, model: LLM, feed: Feed) -> None:
        self._book = book
        self._dialogue = Dialogue(book, model, "talk")
        self._feed = feed

    async def run(self) -> None:
        """From phase `answering` to `idle`.

        Raises:
            ModelFailure: no answer is to be had.
            Superseded: the user said more before the answer was stored.
        """
        results = digest.results(self._book.state.plan)
        await self._book.stage("talk", UserMessage(content=planning.ANSWER.format(results=results)))
        live = LiveText(self._feed, self._book.session_id)
        try:
            text = await self._write(live)
            await self._book.stage("talk", AssistantMessage(content=text))
            await self._book.commit(
                [MessageEvent(role="assistant", content=text), DoneEvent()],
                state=self._book.state.at_rest(last_read_message=self._book.state.last_read_message),
                ends=True,
            )
        finally:
            live.close()

    async def _write(self, live: LiveText) -> str:
        while True:
            reply = await self._dialogue.ask((), live)
            text = reply.content.strip()
            if text:
                return text
            live.restart()
            if reply.tool_calls:
                calls = tuple(parseable(call) for call in distinct_calls(reply.tool_calls, set()))
                self._dialogue.unusable()
                await self._book.stage(
                    "talk",
                    AssistantMessage(tool_calls=calls),
                    *(ToolMessage(tool_call_id=call.id, content=planning.TEXT_ONLY) for call in calls),
                )
            else:
                await self._dialogue.correct(reply, planning.TEXT_ONLY, empty=planning.EMPTY)
