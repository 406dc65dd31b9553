"""Passing on what the model writes while it writes it."""

import re
from collections.abc import Callable
from typing import cast
from uuid import uuid4

from pydantic_core import from_json

from app.domain.external.feed import Feed
from app.domain.models.event import TextDelta

_STEPS_BEGIN = re.compile(r'"steps"\s*:\s*\[\s*\{')


class LiveText:
    """Sends a message to the session's followers as it grows. Close it when the whole message is stored or given up."""

    def __init__(self, feed: Feed, session_id: str) -> None:
        self._feed = feed
        self._session_id = session_id
        self._message_id = uuid4().hex

    def text(self, delta: str) -> None:
        """See `ReplyListener.text`."""
        self._feed.publish_delta(self._session_id, TextDelta(self._message_id, delta))

    def arguments(self, name: str, delta: str) -> None:
        """A plain answer has no calls."""

    def restart(self) -> None:
        """See `ReplyListener.restart`."""
        self._feed.end_delta(self._session_id)
        self._message_id = uuid4().hex

    def close(self) -> None:
        """Nothing more will come."""
        self._feed.end_delta(self._session_id)


class PlanListener:
    """Hears a plan being written: passes its `message` on, and tells at the first step that there will be work."""

    def __init__(self, live: LiveText, on_steps: Callable[[], None]) -> None:
        self._live = live
        self._on_steps = on_steps
        self._written = ""
        self._sent = 0
        self._message_over = False
        self._steps_seen = False

    def text(self, delta: str) -> None:
        """Prose is not a plan; it is not shown before it is known what it is."""

    def arguments(self, name: str, delta: str) -> None:
        """See `ReplyListener.arguments`."""
        self._written += delta
        if not self._message_over:
            self._pass_on()
        if not self._steps_seen and _STEPS_BEGIN.search(self._written):
            self._steps_seen = True
            self._on_steps()

    def restart(self) -> None:
        """See `ReplyListener.restart`."""
        self._written, self._sent, self._message_over = "", 0, False
        self._live.restart()

    def _pass_on(self) -> None:
        try:
            parsed: object = from_json(self._written, allow_partial="trailing-strings")
        except ValueError:
            return  # a key is half written; the next piece will tell
        fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
        message = fields.get("message")
        if isinstance(message, str) and len(message) > self._sent:
            self._live.text(message[self._sent :])
            self._sent = len(message)
        # A field after the message means that the message is whole: no need to parse the steps again and again.
        self._message_over = message is not None and next(reversed(fields)) != "message"
