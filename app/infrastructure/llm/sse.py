"""Server-sent events as model servers write them: bytes in, the `data` of each event out.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, with two allowances: an
event at the very end counts without its blank line, and a body that is no event stream at all is handed over whole.
"""

from collections.abc import Iterator

MAX_BYTES = 128 * 1024 * 1024
MAX_EVENT_BYTES = 8 * 1024 * 1024
"""No turn of a model is larger, and no piece of it; what is, would only fill our memory."""

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data", b"event", b"id", b"retry", b":")


class AnswerTooLarge(Exception):
    """The server sent more than MAX_BYTES, or one event of more than MAX_EVENT_BYTES."""


class EventDecoder:
    """Splits one response body into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._is_stream: bool | None = None

    @property
    def body(self) -> bytes | None:
        """The body so far, when it is not an event stream: JSON, or a page."""
        return None if self._is_stream else self._rest

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that `chunk` completes.

        Raises:
            AnswerTooLarge: the body, or the event under way, has grown past its bound.
        """
        self._size += len(chunk)
        text = self._rest + chunk
        if self._size > MAX_BYTES or len(text) > MAX_EVENT_BYTES:
            raise AnswerTooLarge
        if not self._is_stream and not self._recognise(text):
            self._rest = text
            return
        text = text.removeprefix(_BOM)
        if b"\r" in text:
            text = self._plain_line_ends(text)
        *lines, rest = text.split(b"\n")
        self._rest = rest
        yield from self._events(lines)

    def finish(self) -> Iterator[bytes]:
        """The last event, when the body ended without a blank line after it."""
        if self._is_stream:
            lines = [self._rest.rstrip(b"\r"), b""]
            self._rest = b""
            yield from self._events(lines)

    def _recognise(self, text: bytes) -> bool:
        if self._is_stream is None:
            start = text.removeprefix(_BOM).lstrip()[:5]
            # Too few bytes to tell "data" from anything else: wait for more.
            if len(start) == 5 or start[:1] in (b"{", b"<", b":"):
                self._is_stream = start.startswith(_FIELDS)
        return bool(self._is_stream)

    def _plain_line_ends(self, text: bytes) -> bytes:
        # A CR at the very end may be half of a CRLF; it waits for what follows it.
        half = b"\r" if text.endswith(b"\r") else b""
        return text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + half

    def _events(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data.clear()
