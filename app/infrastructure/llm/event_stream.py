"""Decoding of the body of a streamed reply into the data of its server-sent events."""

from collections.abc import Iterator

import orjson

MAX_BODY_BYTES = 128 * 1024 * 1024
"""Maximum size of one response body, in bytes."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Maximum size of one event, in bytes."""

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data", b"event", b"id", b"retry", b":", b"error")


class ReplyTooLarge(Exception):
    """The body exceeds `MAX_BODY_BYTES`, or one event exceeds `MAX_EVENT_BYTES`."""


class EventDecoder:
    """Splits one response body into the data of its server-sent events.

    Follows https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation with these
    exceptions: the last event counts without its blank line; a body that is not an event stream is kept whole; JSON
    without `data:` counts as data, and so does what follows a line feed in JSON; the data of `event: error`, and of a
    line `error:`, becomes `{"error": data}`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._is_bare = False
        self._is_error = False
        self._size = 0
        self._is_stream: bool | None = None

    @property
    def plain_body(self) -> bytes | None:
        """The body so far if it is not an event stream but JSON or a page; None for a stream."""
        return None if self._is_stream else self._rest

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `chunk` completes.

        Raises:
            ReplyTooLarge: The body or the current event exceeds its limit.
        """
        self._size += len(chunk)
        text = self._rest + chunk
        if self._size > MAX_BODY_BYTES or len(text) > MAX_EVENT_BYTES:
            raise ReplyTooLarge
        if not self._is_stream and not self._recognize(text):
            self._rest = text
            return
        text = text.removeprefix(_BOM)
        if b"\r" in text:
            text = self._normalize_line_ends(text)
        *lines, rest = text.split(b"\n")
        self._rest = rest
        yield from self._events(lines)

    def finish(self) -> Iterator[bytes]:
        """Yield the last event if the body ended without a blank line after it."""
        if self._is_stream:
            lines = [self._rest.rstrip(b"\r"), b""]
            self._rest = b""
            yield from self._events(lines)

    def _recognize(self, text: bytes) -> bool:
        if self._is_stream is None:
            start = text.removeprefix(_BOM).lstrip()[:5]
            # Fewer than five bytes do not tell "data" from other text: wait for more.
            if len(start) == 5 or start[:1] in (b"{", b"<", b":"):
                self._is_stream = start.startswith(_FIELDS)
        return bool(self._is_stream)

    def _normalize_line_ends(self, text: bytes) -> bytes:
        # A CR at the end may be the first half of a CRLF, so it waits for the next chunk.
        half = b"\r" if text.endswith(b"\r") else b""
        return text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + half

    def _events(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif line:
                self._add_unusual_line(line)
            else:
                if self._data:
                    data = b"\n".join(self._data)
                    yield _as_error(data) if self._is_error else data
                self._data.clear()
                self._is_bare = self._is_error = False

    def _add_unusual_line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name in (b"event", b"error"):
            self._is_error = self._is_error or b"error" in (name, value.strip())
        if name == b"error":
            self._data.append(value.strip())
        elif self._data and name not in (b"", b"data", b"event", b"id", b"retry"):
            self._data.append(line)  # a line feed that should have been escaped
        elif line.startswith(b"{") or self._is_bare:
            # A proxy or a server that fails in the middle of a stream appends its error as plain JSON.
            self._is_bare = True
            self._data.append(line)


def _as_error(data: bytes) -> bytes:
    is_json = data.startswith((b"{", b"[", b'"'))
    return b'{"error":%b}' % (data if is_json else orjson.dumps(data.decode("utf-8", "replace")))
