"""Find the values of known secrets in text, in one pass for all secrets and forms.

The automaton searches for windows of each form of a secret, not for the whole: a secret of which a limit has cut off a
part is found too, and a stream holds back only a few characters.
"""

import json
import logging
import re
from base64 import b64encode
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import TypeVar, cast

import orjson
from ahocorasick_rs import BytesAhoCorasick

from app.domain.models.tool import Image

T = TypeVar("T")

log = logging.getLogger(__name__)

MASK = "***"

MIN_SECRET = 8
"""Minimum length of a secret in characters. A shorter one occurs in ordinary text and is not masked."""

WINDOW = 16
"""Number of characters, of a secret or of its Base64, by which it is recognised; of hexadecimal, twice as many."""

MAX_PASSING = 512
"""Maximum number of passing secrets. The oldest ones are forgotten."""

MAX_JSON_LEVELS = 3
"""Number of times that JSON may contain JSON with a secret that contains quotes or backslashes."""

Range = tuple[int, int]
"""Position of the first byte, and of the byte after the last one."""

_LINE_ENDS = b"\r\n"

_ESCAPE = re.compile(
    rb"[%\\&](?:"
    rb"(?<=%)(?:25)*(?P<percent>[0-9a-f]{2})"
    rb"|(?<=\\)\\*(?:u(?P<code>[0-9a-f]{4})|x(?P<byte>[0-9a-f]{2})|(?P<end>[nr])|/)"
    rb"|(?<=&)(?:amp;)*(?:\#x0*(?P<hex>[0-9a-f]{1,6})|\#0*(?P<decimal>[0-9]{1,7})|(?P<name>amp|quot|apos|lt|gt));"
    rb")"
)
"""Matches an escaped character of a URL, of JSON or of HTML, also one that was escaped again, in lower-case text.

It begins with a set, for which the engine skips text much faster than for alternatives.
"""

_OPEN_ESCAPE = re.compile(
    rb"(?:%(?:25)*[0-9a-f]?|\\+(?:u[0-9a-f]{0,3}|x[0-9a-f]?)?|&(?:amp;)*(?:\#x?[0-9a-f]{0,9}|[a-z]{0,4}))\Z"
)
"""Matches the end of a text that the following text may complete to an escaped character, or to a longer one."""

_TOKEN = re.compile(rb"anker_[\w-]{43}")
"""Matches the tokens that `./run.sh token` makes: of these, the service knows only hashes."""

_OPEN_TOKEN = re.compile(rb"a(?:n(?:k(?:e(?:r(?:_[\w-]{0,42})?)?)?)?)?\Z")
"""Matches the beginning of such a token at the end of a text."""

_NAMES = {b"amp": b"&", b"quot": b'"', b"apos": b"'", b"lt": b"<", b"gt": b">"}


class KnownSecrets:
    """A `SecretMask` for a set of values. Base64, hexadecimal, escapes, letter case and line ends do not hide one."""

    def __init__(self, secrets: Mapping[str, str] | None = None, *, window: int = WINDOW) -> None:
        """Create the mask of `secrets`, values by name; see `add` for those that are known later.

        `window`: see `WINDOW`. A smaller one finds shorter parts, and masks more of what is no secret.
        """
        self._window = window
        self._values: set[str] = set()
        self._passing_values: deque[str] = deque(maxlen=MAX_PASSING)
        self._lasting = self._passing = _Needles(())
        self.add(secrets or {})

    def add(self, secrets: Mapping[str, str]) -> None:
        """Mask the values of `secrets` too. Log a warning with the name of one that is too short."""
        for name, value in secrets.items():
            if 0 < len(value) < MIN_SECRET:
                log.warning(
                    "%s is shorter than %d characters, so it is not masked in events and logs", name, MIN_SECRET
                )
        self._values.update(value for value in secrets.values() if len(value) >= MIN_SECRET)
        self._lasting = _Needles(each for value in self._values for each in _needles(value, self._window))

    def add_passing(self, value: str) -> None:
        """Mask the token of something short-lived. Only the whole value is recognised."""
        if len(value) >= MIN_SECRET and value not in self._passing_values:
            self._passing_values.append(value)
            self._passing = _Needles(each for value in self._passing_values for each in _needles(value, None))

    def mask(self, value: T) -> T:
        """Implement `SecretMask.mask`."""
        if isinstance(value, str):
            return cast("T", self._mask_text(value))
        return cast("T", _mask_all(value, self._mask_text)) if self._may_be_in(value) else value

    def _mask_text(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        found = self.find(data)
        return replace_ranges(data, found).decode("utf-8", "surrogatepass") if found else text

    def stream(self) -> "KnownSecretsStream":
        """Implement `SecretMask.stream`."""
        return KnownSecretsStream(self)

    def _may_be_in(self, value: object) -> bool:
        """Encode the value as JSON, which is one text to search: much faster than to search each of its texts."""
        try:
            data = orjson.dumps(value, default=_json_value, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:
            return True  # lone surrogates, huge numbers or deep nesting
        return bool(self._search(_plain(data.lower().replace(b"\\n", b""))))  # escaped line ends, which are many

    def find(self, data: bytes) -> list[Range]:
        """Return where secrets are in the UTF-8 text `data`, in order, without overlaps."""
        lower = data.lower()
        plain = _plain(lower)
        found = self._search(plain)
        if found and plain is not lower:
            view = _PlainView(lower, is_whole=True)
            found = [view.origin(*each) for each in found]
        return _merged(found)

    def first_unfinished(self, data: bytes, found: Sequence[Range]) -> int:
        """Return the position before which no later text can change what is masked.

        Args:
            data: The text so far.
            found: The result of `find` for it.
        """
        lower, cuts = data.lower(), list(found)
        if _plain(lower) is lower and _OPEN_ESCAPE.search(lower) is None:
            position = self._open_tail(lower)
        else:
            view = _PlainView(lower, is_whole=False)
            position = view.source(self._open_tail(view.text[: view.open_escape]))
            cuts += view.escapes
        # Neither a secret nor an escape is cut. From the end on, because one may begin within another.
        for start, end in sorted(cuts, reverse=True):
            if start < position < end:
                position = start
        return position

    def _search(self, text: bytes) -> list[Range]:
        tokens = [found.span() for found in _TOKEN.finditer(text)] if b"anker_" in text else []
        return [*self._lasting.search(text), *self._passing.search(text), *tokens]

    def _open_tail(self, text: bytes) -> int:
        token = _OPEN_TOKEN.search(text)
        ends = (self._lasting.open_tail(text), self._passing.open_tail(text))
        return min(*ends, len(text) if token is None else token.start())


class KnownSecretsStream:
    """The `MaskedStream` of `KnownSecrets`."""

    def __init__(self, secrets: KnownSecrets) -> None:
        self._secrets = secrets
        self._held = b""

    def feed(self, piece: str) -> str:
        """Implement `MaskedStream.feed`."""
        self._held += piece.encode("utf-8", "surrogatepass")
        found = self._secrets.find(self._held)
        return self._take(self._secrets.first_unfinished(self._held, found), found)

    def flush(self) -> str:
        """Implement `MaskedStream.flush`."""
        return self._take(len(self._held), self._secrets.find(self._held))

    def _take(self, position: int, found: Sequence[Range]) -> str:
        taken, self._held = self._held[:position], self._held[position:]
        return replace_ranges(taken, [each for each in found if each[1] <= position]).decode("utf-8", "surrogatepass")


class _Needles:
    """Texts to search for, in lower case and without escapes, as the texts that are searched."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        self._sorted = sorted(set(needles))
        self._automaton = BytesAhoCorasick(self._sorted) if self._sorted else None
        self._longest = max(map(len, self._sorted), default=0)
        self._beginnings = {needle[:length] for needle in self._sorted for length in (1, 2)}

    def search(self, text: bytes) -> list[Range]:
        """Return the positions of all needles, which may overlap."""
        if self._automaton is None:
            return []
        return [(start, end) for _, start, end in self._automaton.find_matches_as_indexes(text, overlapping=True)]

    def open_tail(self, text: bytes) -> int:
        """Return the position of the longest end of `text` that a needle begins with; its length if there is none."""
        for position in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[position : position + 2] in self._beginnings and self._is_beginning(text[position:]):
                return position
        return len(text)

    def _is_beginning(self, text: bytes) -> bool:
        index = bisect_left(self._sorted, text)
        return index < len(self._sorted) and self._sorted[index].startswith(text)


class _PlainView:
    """A text as `_plain` returns it, with the positions that each of its bytes comes from."""

    def __init__(self, data: bytes, *, is_whole: bool) -> None:
        positions = [index for index, byte in enumerate(data) if byte not in _LINE_ENDS]
        kept = data.translate(None, _LINE_ENDS)
        parts: list[bytes] = []
        self._end = len(data)
        self._origins: list[Range] = []
        self.escapes: list[Range] = []
        """Ranges in `data` of the escaped characters."""

        def copy(start: int, end: int) -> None:
            parts.append(kept[start:end])
            self._origins.extend((position, position + 1) for position in positions[start:end])

        found = None if is_whole else _OPEN_ESCAPE.search(kept)
        start, rest = 0, found.start() if found else len(kept)
        for escape in _ESCAPE.finditer(kept, 0, rest):
            copy(start, escape.start())
            start = escape.end()
            decoded = _decoded(escape[0])
            self.escapes.append((positions[escape.start()], positions[start - 1] + 1))
            parts.append(decoded)
            self._origins += [self.escapes[-1]] * len(decoded)
        copy(start, rest)
        self.open_escape = len(self._origins)
        """Position in `text` of an escape at its end that is not complete; its length if there is none."""
        copy(rest, len(kept))
        self.text = b"".join(parts)

    def origin(self, start: int, end: int) -> Range:
        """Return where a part of `text` comes from."""
        return self._origins[start][0], self._origins[end - 1][1]

    def source(self, position: int) -> int:
        """Return where a byte of `text` comes from; where the text ends for the position after the last byte."""
        return self._origins[position][0] if position < len(self._origins) else self._end


def replace_ranges(data: bytes, ranges: Iterable[Range]) -> bytes:
    """Return `data` with each of the ranges, which do not overlap, replaced by `MASK`."""
    parts: list[bytes] = []
    position = 0
    for start, end in ranges:
        parts += (data[position:start], MASK.encode())
        position = end
    return b"".join([*parts, data[position:]])


def _forms(secret: str) -> Iterator[tuple[str, int]]:
    """Yield the forms of a secret that escapes alone do not make, and the characters of each for one of the secret."""
    data = secret.encode("utf-8", "surrogatepass")
    escaped = [secret]
    for _ in range(MAX_JSON_LEVELS):
        escaped.append(json.dumps(escaped[-1], ensure_ascii=False)[1:-1])
    for text in dict.fromkeys(escaped):
        yield text, 1
    yield data.hex(), 2
    for core in base64_cores(data):
        for text in {core, core.replace("+", "-").replace("/", "_")}:
            yield text, 1


def _needles(secret: str, window: int | None) -> Iterator[bytes]:
    """Yield what to search for: each form of the secret, in windows of so many characters of it, or as a whole.

    A secret may contain what looks like an escape, which `_plain` decodes or has decoded from an escaped one.
    """
    for form, characters in _forms(secret):
        lower = form.encode("utf-8", "surrogatepass").lower()
        for data in {lower, _plain(lower)}:
            text = data.decode("utf-8", "surrogatepass")
            size = len(text) if window is None else window * characters
            for start in range(max(1, len(text) - size + 1)):
                yield text[start : start + size].encode("utf-8", "surrogatepass")


def base64_cores(data: bytes) -> Iterator[str]:
    """Yield the characters of Base64 that depend on `data` alone, for each of its three alignments."""
    for before in range(3):
        encoded = b64encode(bytes(before) + data).decode()
        yield encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


def _plain(data: bytes) -> bytes:
    """Return lower-case text without line ends and with decoded escapes; the same object if it has neither."""
    kept = data.translate(None, _LINE_ENDS) if b"\n" in data or b"\r" in data else data
    if b"%" in kept or b"\\" in kept or b"&" in kept:
        return _ESCAPE.sub(lambda escape: _decoded(escape[0]), kept)
    return kept


@lru_cache(maxsize=1024)
def _decoded(text: bytes) -> bytes:
    """Return the character, in lower case, that `_ESCAPE` has matched; nothing for a line end."""
    escape = _ESCAPE.fullmatch(text)
    kind = escape.lastgroup if escape else None
    if escape is None or kind is None:
        return b"/"
    match kind:
        case "percent" | "byte":
            return bytes([int(escape[kind], 16)]).lower()
        case "code" | "hex":
            return _character(int(escape[kind], 16)).lower()
        case "decimal":
            return _character(int(escape[kind])).lower()
        case "name":
            return _NAMES[escape[kind]]
        case _:
            return b""


def _character(code: int) -> bytes:
    return chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else b""


def _mask_all(value: object, mask: Callable[[str], str]) -> object:
    match value:
        case str():
            return mask(value)
        case None | bool() | int() | float() | Image():
            return value
        case Mapping():
            items = cast("Mapping[object, object]", value)
            new = {_mask_all(key, mask): _mask_all(item, mask) for key, item in items.items()}
            return items if all(new.get(key) is item for key, item in items.items()) else new
        case list() | tuple():
            before = cast("Sequence[object]", value)
            after = [_mask_all(item, mask) for item in before]
            if all(old is new for old, new in zip(before, after, strict=True)):
                return before
            return tuple(after) if isinstance(value, tuple) else after
        case _ if is_dataclass(value) and not isinstance(value, type):
            changes = {
                field.name: new
                for field in fields(value)
                if field.init and (new := _mask_all(old := getattr(value, field.name), mask)) is not old
            }
            return replace(value, **changes) if changes else value
        case _:
            return value


def _json_value(value: object) -> object:
    return dict(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else str(value)


def _merged(ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
