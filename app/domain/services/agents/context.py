"""Keeping a conversation within the context window: old results are masked first, then old messages are summarized.

Both are rare and free much room at once, because each changes the beginning of the prompt, which providers cache.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.domain.errors import ContextTooLong, ModelFailure
from app.domain.external.llm import LLM, ModelReply, ModelRequest, ReplyListener
from app.domain.models.message import (
    AssistantMessage,
    MaskRecord,
    Message,
    SummaryRecord,
    SystemMessage,
    ToolMessage,
    Transcript,
    UserMessage,
)
from app.domain.models.run import TranscriptName
from app.domain.models.tool import ToolSpec
from app.domain.prompts import compaction, executing
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.limits import RunLimits

log = logging.getLogger(__name__)

MAX_REFUSALS = 5
"""Maximum number of times that a server may refuse a request as too long before the run fails."""

FULL_SHARE = 0.8
"""Share of the room for messages at which a conversation is compacted."""

LOW_SHARE = 0.45
"""Share of the room that masking must reach; otherwise a summary is written."""

_KEPT_SHARE = 0.2
"""Share of the room for the newest turns, which are never masked and stay as they are beside a summary."""

_LARGE_TURN_SHARE = 0.4
"""Share of the room up to which the newest turn is kept even if it is larger than `_KEPT_SHARE`."""

_NOTES_SHARE = 0.12
_PLAN_SHARE = 0.06
_WORDS_SHARE = 0.15
"""Shares of the room for the notes of a summary, for the results in its plan, and for what the user wrote."""

_HISTORY_SHARE = 0.6
"""Share of the window, without the reply, for the history that the model summarizes."""

_MIN_FREED_SHARE = 0.25
"""Share of the room that a summary must free, unless nothing else makes the request fit."""

_MIN_NOTES_CHARS = 150
"""A shorter summary by the model is no summary; what the service knows is added to it."""

_MIN_CLIPPED_TOKENS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Budget:
    """Division of a context window for one request. All numbers are tokens."""

    window: int
    fixed: int
    """System prompt and tools."""
    reply: int
    pinned: int = 0
    """Messages that must stay as they are."""

    @property
    def room(self) -> int:
        """Room for messages."""
        return self.window - self.fixed - self.reply

    @property
    def spare(self) -> int:
        """Room for messages that can be masked or summarized."""
        return max(self.room - self.pinned, 0)


class BoundedConversation:
    """One of a run's transcripts, sent to a model in requests that fit its context window."""

    def __init__(
        self, checkpointer: RunCheckpointer, model: LLM, transcript: TranscriptName, limits: RunLimits
    ) -> None:
        self._checkpointer = checkpointer
        self._model = model
        self._name: TranscriptName = transcript
        self._limits = limits
        self._window = checkpointer.windows.of(model.profile)

    async def complete(
        self, tools: Sequence[ToolSpec], listener: ReplyListener | None = None, *, max_tokens: int | None = None
    ) -> ModelReply:
        """Return the model's next turn. If there is too little room for it, compact the transcript first.

        Raises:
            ContextTooLong: A single message does not fit, or the server refuses even what is left.
            ModelFailure: The model did not reply.
            RunLimitReached: The run may not call the model any more.
        """
        limit = self._window.tokens
        refusal: ContextTooLong | None = None
        for _ in range(MAX_REFUSALS):
            await self._check_limits()
            request = await self._fit(tools, limit, listener, max_tokens=max_tokens, refusal=refusal)
            await self._check_limits()  # A summary may have taken the last call.
            try:
                reply = self._checkpointer.mask.mask(await self._model.complete(request, listener=listener))
            except ContextTooLong as error:
                refusal = error
                limit = self._window.reduced(request, limit, error.limit_tokens)
                log.warning(
                    "the model's server refused a request as too long",
                    extra={"profile": self._model.profile.name, "assumed_window": limit, "error": str(error)},
                )
                continue
            self._window.learn(request, reply.usage, limit, None if refusal is None else refusal.limit_tokens)
            return reply
        raise ContextTooLong(f"the conversation is too long for the model even after it was shortened: {refusal}")

    async def _check_limits(self) -> None:
        tokens_today = await self._checkpointer.tokens_today() if self._limits.tokens_per_day else 0
        self._limits.check(self._checkpointer.checkpoint, tokens_today=tokens_today)

    async def _fit(
        self,
        tools: Sequence[ToolSpec],
        limit: int,
        listener: ReplyListener | None,
        *,
        max_tokens: int | None,
        refusal: ContextTooLong | None,
    ) -> ModelRequest:
        """Return a request that fits into a window of `limit` tokens."""
        window = self._window
        transcript = await self._checkpointer.transcript(self._name)
        reply = window.reply_tokens(max_tokens, limit)
        budget = _Budget(window=limit, fixed=window.fixed_tokens(transcript, tools), reply=reply)
        if window.message_tokens(transcript) > budget.room * FULL_SHARE:
            transcript = await self._compact(transcript, budget, listener)
            if window.message_tokens(transcript) > budget.room:
                # After a refusal the size of the window is a guess; the server's own words are not.
                raise refusal or self._too_long(transcript, budget)
        if max_tokens is None and reply == self._model.profile.max_tokens:
            return ModelRequest(transcript=transcript, tools=tools)
        return ModelRequest(transcript=transcript, tools=tools, max_tokens=reply)

    async def _compact(self, transcript: Transcript, budget: _Budget, listener: ReplyListener | None) -> Transcript:
        """Return the transcript after the cheapest compaction that frees enough; unchanged if none is worth it."""
        messages, before = transcript.since(0), self._window.message_tokens(transcript)
        pinned = self._window.weigh(_pinned(messages))
        budget = replace(budget, pinned=pinned)
        if before <= pinned + budget.spare * FULL_SHARE:
            return transcript
        newest = self._newest_turns(messages, budget)
        for images_only in (True, False):
            older = compaction.masked(messages[1:newest], images_only=images_only)
            if self._window.weigh([*older, *messages[newest:]]) <= pinned + budget.spare * LOW_SHARE:
                record = MaskRecord(before=newest, images_only=images_only)
                compacted = await self._checkpointer.compact(self._name, record)
                break
        else:
            kept = self._shortened(messages[newest:], budget)
            words = self._words(messages, kept, budget)
            least = self._window.weigh([*words, *kept]) + int(budget.spare * _NOTES_SHARE)
            if least >= budget.room or (before <= budget.room and before - least < budget.spare * _MIN_FREED_SHARE):
                return transcript
            notes = await self._notes(messages[1 : len(messages) - len(kept)], budget, listener)
            summary = self._summary(notes, kept, budget)
            compacted = await self._checkpointer.compact(self._name, SummaryRecord(), *words, summary, *kept)
        log.info(
            "conversation compacted",
            extra={
                "transcript": self._name,
                "messages": len(messages),
                "messages_left": len(compacted),
                "tokens": before,
                "tokens_left": self._window.message_tokens(compacted),
                "window": budget.window,
            },
        )
        return compacted

    def _newest_turns(self, messages: Sequence[Message], budget: _Budget) -> int:
        """Return the position of the newest turns, which stay: as many as `_KEPT_SHARE` allows.

        They include the newest turn of the model, because it has not seen the results of its calls yet.
        """
        position = len(messages) - len(_trailing_user_messages(messages))
        used = 0
        seen_turn = False
        for index in range(position - 1, 0, -1):
            used += self._window.weigh(messages[index : index + 1])
            if seen_turn and used > budget.spare * _KEPT_SHARE:
                break
            if not isinstance(messages[index], ToolMessage):
                position = index
            seen_turn = seen_turn or isinstance(messages[index], AssistantMessage)
        return position

    def _shortened(self, turns: Sequence[Message], budget: _Budget) -> Sequence[Message]:
        """Return the newest turns, with shortened results if they are too large.

        If their calls are too large, return only the messages after them.
        """
        instructions = _trailing_user_messages(turns)
        calls = turns[: len(turns) - len(instructions)]
        limit = int(budget.spare * _LARGE_TURN_SHARE)
        results = sum(isinstance(message, ToolMessage) for message in calls)
        if self._window.weigh(calls) > limit and results:
            share = max(limit // (2 * results), _MIN_CLIPPED_TOKENS)
            calls = [
                replace(message, content=self._window.clip(message.content, share), images=())
                if isinstance(message, ToolMessage) and not compaction.is_from_user(message)
                else message
                for message in calls
            ]
        return (*calls, *instructions) if self._window.weigh(calls) <= limit else instructions

    def _words(self, messages: Sequence[Message], kept: Sequence[Message], budget: _Budget) -> list[UserMessage]:
        """Return messages with what the user wrote outside `kept`, bounded. The newest of all is never shortened."""
        texts = compaction.words_of_user(messages)
        in_kept = len(compaction.words_of_user(kept))
        newest = [] if in_kept else texts[-1:]
        older = texts[: len(texts) - in_kept - len(newest)]
        limit = int(budget.spare * _WORDS_SHARE)
        if older and self._window.weigh([UserMessage(content=text) for text in older]) > limit:
            first = self._window.clip(older[0], limit // 3)
            rest = self._window.clip("\n".join(older[1:]), limit * 2 // 3)
            older = [first, rest] if rest else [first]
        return [UserMessage(content=text) for text in (*older, *newest)]

    def _summary(self, notes: str, kept: Sequence[Message], budget: _Budget) -> UserMessage:
        """Return the message with the goal, the plan and the notes."""
        plan = self._window.clip_results(self._checkpointer.checkpoint.plan, int(budget.spare * _PLAN_SHARE))
        instruction = executing.brief(plan, plan.running) if self._name == "executor" and plan.running else ""
        is_kept = any(instruction in message.content for message in kept)
        return compaction.summary(notes, plan, "" if is_kept else instruction)

    async def _notes(self, old: Sequence[Message], budget: _Budget, listener: ReplyListener | None) -> str:
        """Return the model's notes on the old messages; what the service knows of them if the model has none."""
        if listener is not None:
            listener.waiting(compaction.WRITING, None)
        history = self._window.clip(compaction.history(old), int((budget.window - budget.reply) * _HISTORY_SHARE))
        transcript = Transcript(
            [
                SystemMessage(content=compaction.SYSTEM),
                UserMessage(content=compaction.REQUEST.format(history=history)),
            ]
        )
        notes = ""
        try:
            reply = await self._model.complete(ModelRequest(transcript=transcript, max_tokens=budget.reply))
        except ModelFailure as error:
            log.warning("the model wrote no summary", extra={"error": str(error)})
        else:
            self._checkpointer.add_usage(self._model.profile.priced(reply.usage))
            notes = self._checkpointer.mask.mask(reply.content.strip()) if reply.finish != "refused" else ""
        if len(notes) < _MIN_NOTES_CHARS or notes.startswith(("{", "<tool_call>")):
            notes = f"{compaction.facts(old)}\n{notes}"
        return self._window.clip(notes.strip(), int(budget.spare * _NOTES_SHARE))

    def _too_long(self, transcript: Transcript, budget: _Budget) -> ContextTooLong:
        """Return the error for a transcript that does not fit and cannot be made shorter."""
        if budget.room <= 0:
            return ContextTooLong(
                f"the model's context window of {budget.window:,} tokens is too small: the instructions and tools take "
                f"about {budget.fixed:,}, and the reply up to {budget.reply:,}; choose another model, or set "
                "MODEL_CONTEXT_TOKENS if the window is larger"
            )
        messages = transcript.since(1)
        largest = max(messages, key=lambda message: self._window.weigh([message]))
        what = "message" if isinstance(largest, UserMessage) else "conversation"
        tokens = self._window.weigh([largest] if isinstance(largest, UserMessage) else messages)
        return ContextTooLong(
            f"the {what} is too long for the model: it has about {tokens:,} tokens, and the model's context window of "
            f"{budget.window:,} tokens leaves room for {budget.room:,}; send it in parts, or choose another model"
        )


def _trailing_user_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages at the end that need a reply: an instruction, or the newest words of the user."""
    position = len(messages)
    while position and isinstance(messages[position - 1], UserMessage):
        position -= 1
        if compaction.words_of_user(messages[position : position + 1]):
            break
    return messages[position:]


def _pinned(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages that no compaction shortens: the newest words of the user, and what follows the last turn."""
    trailing = _trailing_user_messages(messages)
    if compaction.words_of_user(trailing):
        return trailing
    return [*(UserMessage(content=text) for text in compaction.words_of_user(messages)[-1:]), *trailing]
