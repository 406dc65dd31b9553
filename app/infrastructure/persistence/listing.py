"""What every store does alike with a session's summary: its preview, its place in the list, its times."""

import re

from app.domain.errors import InvalidInput

PREVIEW_CHARS = 1000
"""How much of the latest message the list of sessions holds."""

_CURSOR = re.compile(r"([0-9]{1,18})-([0-9]{1,18})", re.ASCII)
_MAX_SECONDS = 10**12
"""Some 30,000 years: far from what a clock says, and safe in every database."""


def preview(text: str) -> str:
    """The beginning of `text`, as the list of sessions shows it."""
    return well_formed(text[:PREVIEW_CHARS])


def well_formed(text: str) -> str:
    """`text` without lone surrogates, which no database stores: pairs are joined, others become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encode_cursor(touched: int, ordinal: int) -> str:
    """The place after a session in the list: its latest activity (seconds) and its ordinal by creation."""
    return f"{touched}-{ordinal}"


def decode_cursor(cursor: str) -> tuple[int, int]:
    """The place that `encode_cursor` wrote down.

    Raises:
        InvalidInput: it is none of ours.
    """
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise InvalidInput("cursor: not one that this service gave out")
    return int(found[1]), int(found[2])


def check_time(at: int) -> None:
    """Refuse a time that no clock shows; such a value must not reach a database.

    Raises:
        InvalidInput: `at` is negative or absurdly large.
    """
    if not 0 <= at <= _MAX_SECONDS:
        raise InvalidInput("timestamp: whole seconds since the epoch, please")
