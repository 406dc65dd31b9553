"""Hide secrets, paths and stack traces in a text of a server, also secrets that it repeats in an encoded form."""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache

MASK = "[key]"
PATH_MASK = "[path]"

MIN_SECRET = 4
"""Minimum length of a secret, and of a part of one that contains a digit, to hide."""

MIN_PART = 8
"""Minimum length of a part of a secret without a digit to hide."""

_BETWEEN = r"""(?:[\s"'`,;|+\\.:_-]|\[key\]){0,8}"""
"""Matches what may stand between two characters of a secret that was split: line ends, quotes, commas, hyphens."""

_KEY_LIKE = re.compile(
    r"\b(sk|key|bearer)[-_ ](?=[\w*.\-]*[\d*])[\w*.\-]{6,}|(?<![\w.\-])[\w.\-]*+(?:\*{2,}[\w.\-]*)+", re.IGNORECASE
)
"""Matches keys and masked keys such as `sk-abc***xyz`: a key prefix, then text with a digit or a star."""

_PART = re.compile(rf"(?<![\w.\-])(?:(?=[\w.\-]*\d)[\w.\-]{{{MIN_SECRET},}}|[\w.\-]{{{MIN_PART},}})")

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

    def mask(self, text: str) -> str:
        """Return `text` without the secrets, parts of them, what looks like a key, paths and stack traces."""
        if found := _TRACE.search(text):
            text = text[: found.start()]
        for secret in self._secrets:
            for form in _forms(secret):
                text = form.sub(MASK, text)
        text = _PART.sub(lambda found: MASK if self._has_part(found[0]) else found[0], text)
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
    forms += [[_base64_character(char) for char in core] for core in _base64_cores(data)]
    return tuple(re.compile(_BETWEEN.join(form), re.IGNORECASE) for form in forms)


def _character(char: str) -> str:
    """Return a pattern of a character: itself, or percent-encoded, as an HTML entity, or escaped in JSON."""
    code = ord(char)
    percent = "".join(f"%(?:25)?{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
    return rf"(?:{re.escape(char)}|{percent}|&\#{code};|&\#x0*{code:x};|\\u{code:04x}|\\x{code:02x})"


def _base64_character(char: str) -> str:
    return {"+": r"[+\-]", "/": "[/_]"}.get(char, char)


def _base64_cores(data: bytes) -> Iterator[str]:
    """Yield the characters of Base64 that depend on `data` alone, for each of its three alignments."""
    for before in range(3):
        encoded = b64encode(bytes(before) + data).decode()
        core = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        if len(core) >= MIN_SECRET:
            yield core
