"""Addresses in texts for a person: those of this installation's network are hidden, links to public pages stay."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

HIDDEN = "[address]"

_INTERNAL = ("local", "localdomain", "localhost", "internal", "intranet", "lan", "corp", "home", "private", "svc")
"""Last labels of names that only an internal network resolves."""

_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s'\"<>()]+", re.IGNORECASE)
_PORT = r"(?::\d{1,5}\b)?"
_IPV4 = re.compile(rf"(?<![\w.])(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?![\w]|\.\d){_PORT}")
_IPV6 = re.compile(rf"\[[0-9a-f:.]{{2,45}}(?:%\w+)?\]{_PORT}|(?<![\w:.])[0-9a-f:]{{2,39}}(?![\w:])", re.IGNORECASE)
_NAME = re.compile(
    rf"(?<![\w.@/-])(?:localhost|(?:[\w-]+\.)+(?:{'|'.join(_INTERNAL)}))(?![\w-]|\.\w){_PORT}", re.IGNORECASE
)
_NAMED = re.compile(
    r"(\b(?:host(?:name)?\s*[=:]\s*['\"]?|(?:unknown |resolve |connect to )host:?\s+['\"]?|lookup\s+))[\w.-]+"
    r"(['\"]?,?\s*port\s*[=:]\s*\d+)?",
    re.IGNORECASE,
)
"""Matches the names of hosts as clients of HTTP and DNS report them."""


def public_address(base_url: str) -> str:
    """Return an address without its secrets: user, password and query."""
    parts = urlsplit(base_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def hide_addresses(text: str, base_url: str) -> str:
    """Return `text` without addresses of internal hosts, and without the one of `base_url`."""
    own = (urlsplit(base_url).hostname or "").lower()
    text = _URL.sub(lambda found: found[0] if _is_public(found[0], own) else HIDDEN, text)
    text = _NAMED.sub(lambda found: found[1] + HIDDEN, text)
    text = _NAME.sub(HIDDEN, _IPV6.sub(_hide_ipv6, _IPV4.sub(HIDDEN, text)))
    if own:
        # A public page may have the name within its path; only the name itself is hidden.
        text = re.sub(rf"(?<![\w./-]){re.escape(own)}(?![\w-]|\.\w){_PORT}", HIDDEN, text, flags=re.IGNORECASE)
    return text


def _hide_ipv6(found: re.Match[str]) -> str:
    try:
        ip_address(found[0].partition("]")[0].lstrip("[").partition("%")[0])
    except ValueError:
        return found[0]
    return HIDDEN


def _is_public(url: str, own: str) -> bool:
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return False
    if host == own or "." not in host or host.rpartition(".")[2] in _INTERNAL:
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False
