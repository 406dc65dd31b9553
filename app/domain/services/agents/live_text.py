"""Publish what the model writes while it is writing."""

import re
from collections.abc import Callable
from typing import cast
from uuid import uuid4

from pydantic_core import from_json

from app.domain.external.feed import Feed
from app.domain.models.event import TextDelta

_FIRST_STEP = re.compile(r'"steps"\s*:\s*\[\s*\{')


class LiveText:
    """Publishes a growing message to the session's subscribers. Close it once the message is stored or abandoned."""

    def __init__(self, feed: Feed, session_id: str) -> None:
        self._feed = feed
        self._session_id = session_id
        self._message_id = uuid4().hex

    def text(self, delta: str) -> None:
        """Implement `ReplyListener.text`."""
        self._feed.publish_delta(self._session_id, TextDelta(self._message_id, delta))

    def arguments(self, name: str, delta: str) -> None:
        """Implement `ReplyListener.arguments`. A text answer has no calls."""

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
