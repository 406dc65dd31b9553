"""An exchange with the model: send a request, count its cost, and limit the number of unusable replies."""

from collections.abc import Sequence
from typing import TypeVar
from uuid import uuid4

from app.domain.errors import ModelFailure
from app.domain.external.feed import Feed
from app.domain.external.llm import LLM, ModelReply, ReplyListener
from app.domain.models.event import StatusDelta
from app.domain.models.message import AssistantMessage, ToolCall, UserMessage
from app.domain.models.run import TranscriptName
from app.domain.models.tool import ToolSpec
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.context import BoundedConversation
from app.domain.services.tools.arguments import BadArguments, parse_arguments
from app.domain.services.tools.base import ToolInput

I = TypeVar("I", bound=ToolInput)  # noqa: E741 - the input


MAX_CORRECTIONS = 3
"""Maximum number of unusable replies in a row that the model may correct before the run fails."""


class StatusListener:
    """Publishes what a model call waits for to the session's subscribers. The rest of the reply is not published."""

    def __init__(self, feed: Feed, session_id: str) -> None:
        self._feed = feed
        self._session_id = session_id

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`."""

    def arguments(self, name: str, delta: str) -> None:
        """Implement `ReplyListener.arguments`."""

    def restart(self) -> None:
        """Implement `ReplyListener.restart`."""

    def waiting(self, text: str, retry_in: float | None) -> None:
        """Implement `ReplyListener.waiting`."""
        self._feed.publish_status(self._session_id, StatusDelta(text, retry_in))


class ModelExchange:
    """Sends one of a run's transcripts to the model."""

    def __init__(self, checkpointer: RunCheckpointer, model: LLM, transcript: TranscriptName) -> None:
        self._checkpointer = checkpointer
        self._model = model
        self._transcript: TranscriptName = transcript
        self._conversation = BoundedConversation(checkpointer, model, transcript)
        self.unusable_replies = 0
        """Number of unusable replies since the last usable one."""

    async def request(self, tools: Sequence[ToolSpec], listener: ReplyListener | None = None) -> ModelReply:
        """Return the model's next turn.

        Raises:
            ModelFailure: The model did not reply, or refused.
        """
        reply = await self._conversation.complete(tools, listener)
        self._checkpointer.add_usage(self._model.profile.priced(reply.usage))
        if reply.finish == "refused":
            raise ModelFailure(f"the model refused: {reply.content[:500] or 'it gave no reason'}")
        return reply

    async def stage_turn(self, reply: ModelReply, *, used_ids: set[str]) -> Sequence[ToolCall]:
        """Stage the reply in the transcript. Return its calls, with their IDs made new and added to `used_ids`."""
        unknown_ids = self._checkpointer.is_summarized(self._transcript)
        calls = with_distinct_call_ids(reply.tool_calls, used_ids, new=unknown_ids)
        turn = AssistantMessage(
            content=reply.content,
            tool_calls=tuple(calls),
            provider_fields=reply.provider_fields,
        )
        await self._checkpointer.stage(self._transcript, turn)
        return calls

    async def correct_text(self, reply: ModelReply, correction: str, *, empty: str) -> None:
        """Keep an unusable text reply in the transcript, followed by `correction`; or by `empty` if it has no text.

        Raises:
            ModelFailure: Too many replies in a row were unusable.
        """
        self.count_unusable()
        text = reply.content.strip()
        if text:
            await self._checkpointer.stage(self._transcript, AssistantMessage(content=text))
        await self._checkpointer.stage(self._transcript, UserMessage(content=correction if text else empty))

    def count_unusable(self) -> None:
        """Count an unusable reply.

        Raises:
            ModelFailure: Too many replies in a row were unusable.
        """
        self.unusable_replies += 1
        if self.unusable_replies > MAX_CORRECTIONS:
            raise ModelFailure(
                f"the model returned {self.unusable_replies} replies in a row that could not be used; "
                "set MODEL_NAME to a model that calls functions reliably"
            )


def with_distinct_call_ids(calls: Sequence[ToolCall], taken: set[str], *, new: bool = False) -> list[ToolCall]:
    """Return the calls with IDs that are not in `taken`, and add them to it.

    Some servers send no IDs, or the same ones in every turn. `new`: replace every ID, because the older ones are not
    known any more.
    """
    result: list[ToolCall] = []
    for call in calls:
        call_id, number = f"call_{uuid4().hex}" if new else call.id, len(taken)
        while not call_id or call_id in taken:
            number += 1
            call_id = f"call_{number}"
        taken.add(call_id)
        result.append(ToolCall(id=call_id, name=call.name, arguments=call.arguments))
    return result


def parse_text_call(model: type[I], content: str, name: str) -> I | None:
    """Parse text as the arguments of a call to the function `name`. Return None if it is something else.

    The text must be a JSON object, plain or in a fenced block: the arguments themselves, or a wrapper of them.
    """
    if not content.lstrip().startswith(("{", "```")):
        return None
    try:
        return parse_arguments(model, content, name=name)
    except BadArguments:
        return None
