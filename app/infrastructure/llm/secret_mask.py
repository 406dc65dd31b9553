"""Hide secrets, paths and stack traces in a text of a server, also secrets that it repeats in an encoded form."""

import re
from collections.abc import Iterable
from functools import lru_cache

from app.infrastructure.secrets.known_secrets import MASK as HIDDEN
from app.infrastructure.secrets.known_secrets import MIN_SECRET as MIN_KNOWN
from app.infrastructure.secrets.known_secrets import KnownSecrets, base64_cores

MASK = "[key]"
PATH_MASK = "[path]"

MIN_SECRET = 4
"""Minimum length of a secret, and of a part of one that contains a digit, to hide."""

MIN_PART = 8
"""Minimum length of a part of a secret without a digit, or of an encoded one, to hide."""

_BETWEEN = r"""(?:[\s"'`,;|+\\.:_-]|\*\*\*){0,8}"""
"""Matches what may stand between two characters of a secret that was split: line ends, quotes, commas, hyphens."""

_KEY_LIKE = re.compile(
    r"\b(sk|key|bearer)[-_ ](?=[\w*.\-]*[\d*])[\w*.\-]{6,}|(?<![\w.+/\-])[\w.+/\-]*+(?:\*{2,}[\w.+/\-]*)+={0,2}",
    re.IGNORECASE,
)
"""Matches keys and masked keys such as `sk-abc***xyz`: a key prefix, then text with a digit or a star.

What touches a mask belongs to it: at its ends, Base64 mixes bits of the secret with those of its neighbours.
"""

_PART = re.compile(rf"(?<![\w.\-])(?:(?=[\w.\-]*\d)[\w.\-]{{{MIN_SECRET},}}|[\w.\-]{{{MIN_PART},}})")

_BASE64 = {"+": r"[+\-]", "/": "[/_]"}
"""Patterns of characters that Base64 for addresses replaces."""

_SHARED = r"[\w+/\-]?"
"""Matches a character of Base64 that also has bits of a neighbour of the secret."""

_PATH = re.compile(
    r"(?<![\w:/.~])(?:file://)?(?:~|\.\.?)?/(?!v\d|(?:api|openai|chat|models|engines|deployments)\b)"
    r"(?:[\w.@+-]*\w/)+[\w.@+-]*"
    r"|\b[A-Za-z]:\\(?:[^\\\s\"']+\\)*[^\\\s\"']*",
)
"""Matches absolute paths of files. Paths of an API, which help the user, begin with one of the names listed."""

_TRACE = re.compile(
    r"""Traceback \(|stack ?(?:back)?trace\s*:|\bgoroutine \d+ \[|\bFile "[^"]*", line \d|thread '[^']*' panicked at"""
    r"""|\n\s*at [\w.$<>/ ]+ ?[(:]""",
    re.IGNORECASE,
)
"""Matches the beginning of a stack trace of Python, Java, JavaScript, Go or Rust."""


class ErrorTextMask:
    """Masks certain secrets, whatever the case, the encoding and the separators in which they are repeated."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({each for each in secrets if len(each) >= MIN_SECRET}, key=len, reverse=True)
        self._folded = [each.casefold() for each in self._secrets]
        known = {text: text for each in self._secrets if len(each) >= MIN_KNOWN for text in (each, each[::-1])}
        self._parts = KnownSecrets(known, window=MIN_PART)

    def mask(self, text: str) -> str:
        """Return `text` without the secrets, parts of them, what looks like a key, paths and stack traces."""
        if found := _TRACE.search(text):
            text = text[: found.start()]
        for secret in self._secrets:
            for form in _forms(secret):
                text = form.sub(HIDDEN, text)
        text = self._parts.mask(text)
        text = _PART.sub(lambda found: HIDDEN if self._has_part(found[0]) else found[0], text)
        return _PATH.sub(PATH_MASK, _KEY_LIKE.sub(MASK, text))

    def _has_part(self, part: str) -> bool:
        return any(part.strip(".-").casefold() in secret for secret in self._folded)


@lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[re.Pattern[str], ...]:
    """Return patterns of the secret as text (escaped in any way), in reverse, in hexadecimal and in Base64."""
    plain = [_character(char) for char in secret]
    data = secret.encode("utf-8", "surrogatepass")
    digits = [re.escape(digit) for digit in data.hex()]
    forms = [plain, plain[::-1], digits]
    for before, core in enumerate(base64_cores(data)):
        if len(core) >= MIN_SECRET:
            first = [_SHARED] if before else []
            last = [_SHARED] if (before + len(data)) % 3 else []
            forms.append([*first, *(_BASE64.get(char, char) for char in core), *last])
    return tuple(re.compile(_BETWEEN.join(form), re.IGNORECASE) for form in forms)


def _character(char: str) -> str:
    """Return a pattern of a character: itself, or percent-encoded, as an HTML entity, or escaped in JSON."""
    code = ord(char)
    percent = "".join(f"%(?:25)?{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
    return rf"(?:{re.escape(char)}|{percent}|&\#{code};|&\#x0*{code:x};|\\u{code:04x}|\\x{code:02x})"
