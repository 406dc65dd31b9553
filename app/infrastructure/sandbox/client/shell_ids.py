"""Encode shell names for the sandbox's API, which takes `[A-Za-z0-9_.:-]`, 1 to 128 characters.

A model may give its shells any name. A plain name is unchanged; all others are escaped, and no two names collide:

    main          → main
    my shell      → my:20shell        (`:` and two hex digits for each UTF-8 byte)
    300 times x   → ::<40 hex digits> (a hash, because the name is too long)
    empty         → :
"""

import hashlib
import re

MAX_ENCODED = 64
"""Maximum length of an encoded name in characters; the rest of the 128 is for the prefix in a shared sandbox."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN_SCOPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def encode_id(name: str) -> str:
    """Return `name` in the API's alphabet, 1 to `MAX_ENCODED` characters; different names get different ids."""
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
    """Return a session's id as 1 to 63 characters of `[A-Za-z0-9_-]`; different ids get different scopes.

    It has no dot, so `<scope>.` is the prefix of one scope only. It can also name a folder.
    """
    # No plain scope begins with a hyphen.
    return name if _PLAIN_SCOPE.fullmatch(name) else "-" + _hash(name)


def _hash(name: str) -> str:
    return hashlib.sha256(_bytes(name)).hexdigest()[:40]


def _bytes(name: str) -> bytes:
    # A model's JSON may hold half a surrogate pair, which strict encoding refuses.
    return name.encode("utf-8", "surrogatepass")
