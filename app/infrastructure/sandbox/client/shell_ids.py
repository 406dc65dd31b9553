"""Shell ids as the sandbox's API takes them: `[A-Za-z0-9_.:-]`, 1 to 128 characters.

A model may name its shells anything. A plain name goes as it is; every other one is escaped, never two alike:

    main          → main
    my shell      → my:20shell        (`:` and two hex digits for each UTF-8 byte)
    300 times x   → ::<40 hex digits> (a hash: too long to be written out)
    nothing       → :
"""

import hashlib
import re

MAX_ENCODED = 64
"""Characters of an encoded name; what is left of the 128 belongs to the prefix of a shared sandbox."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN_SCOPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def encode_id(name: str) -> str:
    """`name` in the API's alphabet, 1 to `MAX_ENCODED` characters; different names stay different."""
    if _PLAIN_ID.fullmatch(name):
        return name
    if not name:
        return ":"
    if len(name) <= MAX_ENCODED:
        escaped = _UNSAFE.sub(lambda found: "".join(f":{byte:02X}" for byte in _bytes(found.group())), name)
        if len(escaped) <= MAX_ENCODED:
            return escaped
    # No escape begins with two colons, so a hash never equals an escaped name.
    return "::" + _hash(name)


def encode_scope(name: str) -> str:
    """A session's id as one word of `[A-Za-z0-9_-]`, at most 63 characters; different ids stay different.

    It has no dot, so `<scope>.` is the prefix of one scope only, and it can name a folder.
    """
    # No plain scope begins with a hyphen.
    return name if _PLAIN_SCOPE.fullmatch(name) else "-" + _hash(name)


def _hash(name: str) -> str:
    return hashlib.sha256(_bytes(name)).hexdigest()[:40]


def _bytes(name: str) -> bytes:
    # A model's JSON may hold half a surrogate pair; that is no reason to fail.
    return name.encode("utf-8", "surrogatepass")
