"""Canaries: values that must not be seen anywhere, in the forms in which programs repeat a value."""

import base64
import codecs
import html
import json
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote


def _percent(text: str, digits: str = "%%%02X") -> str:
    return "".join(digits % byte for byte in text.encode())


FORMS: Mapping[str, Callable[[str], str]] = {
    "raw": lambda text: text,
    "upper": lambda text: text.encode().upper().decode(),
    "base64": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64-url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64-after-1": lambda text: base64.b64encode(b"u" + text.encode()).decode()[2:-4],
    "base64-after-2": lambda text: base64.b64encode(b"u:" + text.encode()).decode()[3:-4],
    "base64-lines": lambda text: base64.encodebytes(b"x" * 41 + text.encode())[56:].decode().rstrip("=\n"),
    "hex": lambda text: text.encode().hex(),
    "hex-upper": lambda text: text.encode().hex().upper(),
    "url": lambda text: quote(text, safe=""),
    "url-lower": lambda text: _percent(text, "%%%02x"),
    "url-all": _percent,
    "url-twice": lambda text: quote(_percent(text)),
    "json": lambda text: json.dumps(text)[1:-1],
    "json-twice": lambda text: json.dumps(json.dumps(text))[3:-3],
    "json-codes": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "json-slash": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "html": html.escape,
    "html-codes": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "html-hex": lambda text: "".join(f"&#x{ord(char):X};" for char in text),
    "wrapped": lambda text: text[:10] + "\r\n" + text[10:],
}
"""Functions that return a form of a text, by name."""


def all_forms(values: Iterable[str]) -> str:
    """Return every form of each value, one a line."""
    return "\n".join(form(value) for value in values for form in FORMS.values())


def found_in(data: bytes, values: Iterable[str]) -> list[str]:
    """Return the names of the forms of `values` that `data` contains, as it is or escaped as JSON text."""
    return [
        name
        for value in values
        for name, form in FORMS.items()
        for text in {form(value), json.dumps(form(value))[1:-1], json.dumps(form(value), ensure_ascii=False)[1:-1]}
        if text.encode() in data
    ]


def hidden(text: str) -> str:
    """Return `text` so that no mask recognises it. `REVEAL` in Python turns it back."""
    return codecs.encode(text, "rot13").encode().hex()


REVEAL = "import codecs\ndef reveal(text): return codecs.decode(bytes.fromhex(text).decode(), 'rot13')\n"
"""Python code that defines `reveal`, which undoes `hidden`."""
