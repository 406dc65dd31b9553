"""One exchange with the model: ask, count what it cost, refuse what cannot be used, and not for ever."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

from app.domain.errors import ModelFailure
from app.domain.external.llm import LLM, ModelReply, ModelRequest, ReplyListener
from app.domain.models.message import AssistantMessage, ToolCall, UserMessage
from app.domain.models.run import TranscriptName
from app.domain.models.tool import ToolSpec
from app.domain.services.agents.book import RunBook
from app.domain.services.tools.base import ToolInput

I = TypeVar("I", bound=ToolInput)  # noqa: E741 - the input

_THINKING = re.compile(r"\A\s*(?:<think>)?.*?</think>\s*", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n```", re.DOTALL)

MAX_CORRECTIONS = 3
"""How often in a row the model is told that its answer cannot be used before the run gives up."""

MAX_TURNS = 5_000
"""Model turns of one run; a model that goes round in circles must end somewhere."""


class Dialogue:
    """The model, asked in one of the run's transcripts."""

    def __init__(self, book: RunBook, model: LLM, thread: TranscriptName) -> None:
        self._book = book
        self._model = model
        self._thread: TranscriptName = thread
        self._corrections = 0

    @property
    def corrections(self) -> int:
        """How many answers in a row could not be used."""
        return self._corrections

    async def ask(self, tools: Sequence[ToolSpec], listener: ReplyListener | None = None) -> ModelReply:
        """The model's next turn.

        Raises:
            ModelFailure: it does not answer, or refuses to.
        """
        request = ModelRequest(transcript=await self._book.thread(self._thread), tools=tools)
        reply = await self._model.complete(request, listener=listener)
        self._book.spent(reply.usage)
        if reply.finish == "refused":
            raise ModelFailure(f"the model refused: {reply.content[:500] or 'it gave no reason'}")
        # Some servers hand out a model's thinking as text. It is neither an answer nor worth its tokens next time.
        return replace(reply, content=_THINKING.sub("", reply.content)) if "</think>" in reply.content else reply

    async def correct(self, reply: ModelReply, words: str, *, empty: str) -> None:
        """Keep an unusable text answer and say what is wrong with it (`empty`, when there was none).

        Raises:
            ModelFailure: it was told often enough.
        """
        self.unusable()
        text = reply.content.strip()
        if text:
            await self._book.stage(self._thread, AssistantMessage(content=text))
        await self._book.stage(self._thread, UserMessage(content=words if text else empty))

    def unusable(self) -> None:
        """Count an answer that could not be used.

        Raises:
            ModelFailure: too many in a row.
        """
        self._corrections += 1
        if self._corrections > MAX_CORRECTIONS:
            raise ModelFailure(
                f"the model gave {self._corrections} answers in a row that could not be used; "
                "a model that is good at calling functions is needed (MODEL_NAME)"
            )

    def usable(self) -> None:
        """The answer could be used: what went wrong before is forgiven."""
        self._corrections = 0


def distinct_calls(calls: Sequence[ToolCall], taken: set[str]) -> list[ToolCall]:
    """The calls with ids that are new in this run: some servers send none, or the same one every turn."""
    result: list[ToolCall] = []
    for call in calls:
        call_id, number = call.id, len(taken)
        while not call_id or call_id in taken:
            number += 1
            call_id = f"call_{number}"
        taken.add(call_id)
        result.append(ToolCall(id=call_id, name=call.name, arguments=call.arguments))
    return result


def parseable(call: ToolCall) -> ToolCall:
    """The call as it may be kept: some providers refuse a conversation that holds arguments which are not JSON."""
    try:
        kept = call.arguments if isinstance(json.loads(call.arguments), dict) else "{}"
    except ValueError:
        kept = "{}"
    return ToolCall(id=call.id, name=call.name or "unnamed", arguments=kept)


def content_as(model: type[I], content: str, name: str) -> I | None:
    """`content` as arguments of the function `name`, when it is plain JSON (or a fenced block of it) that fits.

    Understood are the arguments themselves and the usual wrappings, `{"name": …, "arguments": {…}}` and `{name: {…}}`.
    """
    text = content.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1].strip()
    if not text.startswith("{"):
        return None
    try:
        whole: object = json.loads(text)
    except ValueError:
        return None
    fields = cast("dict[str, object]", whole)
    for candidate in (fields.get("arguments") if fields.get("name") == name else None, fields.get(name), fields):
        try:
            return model.model_validate(json.loads(candidate) if isinstance(candidate, str) else candidate)
        except ValueError:
            continue
    return None
