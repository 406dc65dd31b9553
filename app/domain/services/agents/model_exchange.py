"""An exchange with the model: send a request, count its cost, and limit the number of unusable replies."""

from collections.abc import Sequence
from typing import TypeVar
from uuid import uuid4

from app.domain.errors import MalformedReply, ModelFailure
from app.domain.external.llm import LLM, TEXT_CALLS_HINT, ModelReply, ReplyListener
from app.domain.models.message import AssistantMessage, ToolCall, Usage, UserMessage
from app.domain.models.run import TranscriptName
from app.domain.models.tool import ToolSpec
from app.domain.prompts import correction
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.context import BoundedConversation
from app.domain.services.agents.limits import RunLimits
from app.domain.services.agents.live_text import ContinuationListener, repeated_characters
from app.domain.services.tools.arguments import BadArguments, is_complete, parse_arguments
from app.domain.services.tools.base import ToolInput

I = TypeVar("I", bound=ToolInput)  # noqa: E741 - the input

MAX_CORRECTIONS = 3
"""Maximum number of unusable replies in a row that the model may correct before the run fails."""

MAX_CONTINUATIONS = 3
"""Maximum number of requests for the rest of a text that was cut off."""


class ModelExchange:
    """Sends one of a run's transcripts to the model."""

    def __init__(
        self, checkpointer: RunCheckpointer, model: LLM, transcript: TranscriptName, limits: RunLimits
    ) -> None:
        self._checkpointer = checkpointer
        self._model = model
        self._transcript: TranscriptName = transcript
        self._conversation = BoundedConversation(checkpointer, model, transcript, limits)
        self._max_tokens = model.profile.max_tokens
        self.unusable_replies = 0
        """Number of unusable replies since the last usable one."""

    async def request(self, tools: Sequence[ToolSpec], listener: ReplyListener) -> ModelReply:
        """Return the model's next turn.

        A reply that the length limit cut off without any use is requested again with a larger limit, if the model
        takes one. A reply that the server refuses is corrected.

        Raises:
            ModelFailure: The model did not reply, or refused.
            RunLimitReached: The run may not call the model any more.
        """
        while True:
            raised = self._max_tokens if self._max_tokens > self._model.profile.max_tokens else None
            try:
                reply = await self._conversation.complete(tools, listener, max_tokens=raised)
            except MalformedReply as error:
                self._checkpointer.add_usage(Usage(calls=1))
                problem, generated = self._checkpointer.mask.mask((str(error), error.generated))
                self.count_unusable(f"the server rejected it ({problem})")
                await self._stage_text(correction.rejected(problem, generated))
            else:
                self._checkpointer.add_usage(self._model.profile.priced(reply.usage))
                if reply.finish == "refused":
                    raise ModelFailure(f"the model refused: {reply.content[:500] or 'it gave no reason'}")
                if not (_is_useless(reply, tools) and self._raise_max_tokens()):
                    return reply
            listener.restart()

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

    async def stage_text(self, reply: ModelReply, listener: ReplyListener) -> str:
        """Stage a text reply and return its text. Request the rest if the length limit cut it off.

        Raises:
            ModelFailure, RunLimitReached: See `request`.
        """
        text = await self.stage_part(reply)
        for _ in range(MAX_CONTINUATIONS):
            if reply.finish != "length":
                return text
            self._raise_max_tokens()
            await self._stage_text(correction.CONTINUE)
            continuation = ContinuationListener(listener, text)
            reply = await self.request((), continuation)
            continuation.finish()
            part = await self.stage_part(reply)
            text += part[repeated_characters(text, part) :]
        return text if reply.finish != "length" else text + correction.CUT_ANSWER

    async def stage_part(self, reply: ModelReply) -> str:
        """Stage the text of a reply, which may be a part of an answer, and return it."""
        if reply.content:
            turn = AssistantMessage(content=reply.content, provider_fields=reply.provider_fields)
            await self._checkpointer.stage(self._transcript, turn)
        return reply.content

    async def correct_text(self, reply: ModelReply, reminder: str, *, empty: str) -> None:
        """Keep an unusable text reply in the transcript, followed by `reminder`; or by `empty` if it has no text.

        Raises:
            ModelFailure: Too many replies in a row were unusable.
        """
        text = reply.content.strip()
        if reply.finish == "length":
            self.count_unusable(self.cut_off)
            reminder = empty = correction.CUT_OFF
        elif reply.text_calls:
            self.count_unusable(TEXT_CALLS_HINT)
            reminder = empty = correction.TEXT_CALLS
        else:
            self.count_unusable(_TEXT if text else "it was empty")
        if text:
            await self.stage_part(reply)
        await self._stage_text(reminder if text else empty)

    def count_unusable(self, problem: str) -> None:
        """Count an unusable reply. `problem` says what is wrong with it and completes "the last one: ".

        Raises:
            ModelFailure: Too many replies in a row were unusable.
        """
        self.unusable_replies += 1
        if self.unusable_replies > MAX_CORRECTIONS:
            advice = "" if problem in (self.cut_off, _TEXT, TEXT_CALLS_HINT) else f"; {_ADVICE}"
            raise ModelFailure(
                f"the model returned {self.unusable_replies} replies in a row that could not be used; "
                f"the last one: {problem}{advice}"
            )

    @property
    def cut_off(self) -> str:
        """The problem of a reply that the length limit cut off, for `count_unusable`."""
        return f"it was cut off at {self._max_tokens} tokens; set MAX_TOKENS to a larger value"

    def _raise_max_tokens(self) -> bool:
        """Double the length limit of this and later replies. Return False if the model takes no larger one."""
        before = self._max_tokens
        self._max_tokens = max(before, min(2 * before, self._model.profile.output_limit))
        return self._max_tokens > before

    async def _stage_text(self, text: str) -> None:
        await self._checkpointer.stage(self._transcript, UserMessage(content=text))


_TEXT = (
    "it was text instead of a function call; set MODEL_NAME to a model that calls functions reliably, or turn on the "
    "parser for tool calls of the model's server"
)
_ADVICE = "set MODEL_NAME to a model that calls functions reliably"


def _is_useless(reply: ModelReply, tools: Sequence[ToolSpec]) -> bool:
    """Return whether the length limit cut off the reply so that nothing in it can be used."""
    if reply.finish != "length":
        return False
    if reply.tool_calls:
        return not all(is_complete(call.arguments) for call in reply.tool_calls)
    return bool(tools) or not reply.content.strip()


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
