"""Publication of messages while the model writes them: plain text, or a text field of a call's arguments."""

import re
from collections.abc import Callable
from typing import cast
from uuid import uuid4

from pydantic_core import from_json

from app.domain.external.feed import Feed
from app.domain.external.llm import ReplyListener
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.models.event import StatusDelta, TextDelta

_FIRST_STEP = re.compile(r'"steps"\s*:\s*\[\s*\{')

_MAX_FIRST_STEP = 64
"""Maximum number of characters of a match of `_FIRST_STEP` that is looked for in several pieces."""

_ALWAYS_PARSED = 4096
"""Number of characters up to which arguments are parsed again with each piece."""

_PARSED_AGAIN = 64
"""Longer arguments are parsed again once they have grown by one part in this many: the time grows with their length."""

MIN_OVERLAP = 20
"""Minimum number of characters at the end of a text that a continuation must repeat to be recognised."""

_MIN_WHOLE_OVERLAP = 8
"""The same for a continuation that repeats the whole of a shorter text."""


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


class LiveText(StatusListener):
    """Publishes a growing message to the session's subscribers. Close it once the message is stored or abandoned.

    What may be the beginning of a secret is held back until more text follows, or until `finish`.
    """

    def __init__(self, feed: Feed, session_id: str, mask: SecretMask | None = None) -> None:
        super().__init__(feed, session_id)
        self._mask = mask or NoSecrets()
        self._begin()

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`."""
        self._publish(self._masked.feed(delta))

    def restart(self) -> None:
        """Implement `ReplyListener.restart`."""
        self._feed.end_delta(self._session_id)
        self._begin()

    def finish(self) -> None:
        """Publish what is held back: the message is complete, and will be stored."""
        self._publish(self._masked.flush())

    def close(self) -> None:
        """End the message."""
        self._feed.end_delta(self._session_id)

    def _begin(self) -> None:
        self._message_id = uuid4().hex
        self._masked = self._mask.stream()

    def _publish(self, text: str) -> None:
        if text:
            self._feed.publish_delta(self._session_id, TextDelta(self._message_id, text))


class ArgumentListener:
    """Publishes the text field `field` of a call to `function` while the call is being written."""

    def __init__(self, live: LiveText, function: str, field: str) -> None:
        self._live = live
        self._function = function
        self._field = field
        self._pieces: list[str] = []
        self._length = 0
        self._parsed = 0
        self._published = 0
        self._complete = False

    @property
    def written(self) -> str:
        """The arguments so far."""
        return "".join(self._pieces)

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`. Text is not a call and is not published before it is understood."""

    def arguments(self, name: str, delta: str) -> None:
        """Implement `ReplyListener.arguments`."""
        if name != self._function:
            return
        self._pieces.append(delta)
        self._length += len(delta)
        is_due = self._length <= _ALWAYS_PARSED or (self._length - self._parsed) * _PARSED_AGAIN >= self._length
        if is_due and not self._complete:
            self._publish()

    def restart(self) -> None:
        """Implement `ReplyListener.restart`."""
        self._pieces.clear()
        self._length = self._parsed = self._published = 0
        self._complete = False
        self._live.restart()

    def waiting(self, text: str, retry_in: float | None) -> None:
        """Implement `ReplyListener.waiting`."""
        self._live.waiting(text, retry_in)

    def _publish(self) -> None:
        self._parsed, written = self._length, self.written
        if self._field not in written:
            return
        try:
            parsed: object = from_json(written, allow_partial="trailing-strings")
        except ValueError:
            return  # A key is incomplete; the next piece completes it.
        fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
        text = fields.get(self._field)
        if isinstance(text, str) and len(text) > self._published:
            self._live.text(text[self._published :])
            self._published = len(text)
        # Once another field follows, the text is complete and need not be parsed again.
        self._complete = text is not None and next(reversed(fields)) != self._field


class PlanListener(ArgumentListener):
    """Publishes the `message` of a plan while the plan is being written, and reports the beginning of its first step.

    `on_steps` is called once, when it is known that the plan has steps.
    """

    def __init__(self, live: LiveText, on_steps: Callable[[], None]) -> None:
        super().__init__(live, "create_plan", "message")
        self._on_steps = on_steps
        self._steps_seen = False
        self._end = ""

    def arguments(self, name: str, delta: str) -> None:
        """Implement `ReplyListener.arguments`."""
        super().arguments(name, delta)
        if self._steps_seen or name != self._function:
            return
        if _FIRST_STEP.search(self._end + delta):
            self._steps_seen = True
            self._on_steps()
        self._end = (self._end + delta)[-_MAX_FIRST_STEP:]

    def restart(self) -> None:
        """Implement `ReplyListener.restart`."""
        super().restart()
        self._end = ""


class ContinuationListener:
    """Publishes the continuation of a text that was cut off, without what the continuation repeats of the text."""

    def __init__(self, listener: ReplyListener, text: str) -> None:
        self._listener = listener
        self._text = text
        self._received = ""
        self._repeated: int | None = None
        """Number of repeated characters; None until it is known."""

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`."""
        self._received += delta
        if self._repeated is not None:
            self._listener.text(delta)
        elif self._received not in self._text:  # It may be a repetition as long as the text contains it.
            self.finish()

    def arguments(self, name: str, delta: str) -> None:
        """Implement `ReplyListener.arguments`."""

    def restart(self) -> None:
        """Implement `ReplyListener.restart`. The text before the continuation is published again."""
        self._received, self._repeated = "", None
        self._listener.restart()
        self._listener.text(self._text)

    def waiting(self, text: str, retry_in: float | None) -> None:
        """Implement `ReplyListener.waiting`."""
        self._listener.waiting(text, retry_in)

    def finish(self) -> None:
        """Publish what is held back. Call it when the continuation is complete."""
        if self._repeated is None:
            self._repeated = repeated_characters(self._text, self._received)
            if rest := self._received[self._repeated :]:
                self._listener.text(rest)


def repeated_characters(text: str, continuation: str) -> int:
    """Return how many characters at the beginning of `continuation` repeat the end of `text`.

    A repetition shorter than `MIN_OVERLAP`, and one that `text` contains more than once, may be meant.
    """
    shortest = max(_MIN_WHOLE_OVERLAP, min(MIN_OVERLAP, len(text)))
    for length in range(min(len(text), len(continuation)), shortest - 1, -1):
        beginning = continuation[:length]
        if text.endswith(beginning) and text.find(beginning) == len(text) - length:
            return length
    return 0
