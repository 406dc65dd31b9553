"""Conversion of URLs, paths and keys that a model writes to those of the browser, and of paths back."""

import ipaddress
import posixpath
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from app.domain.errors import BrowserFailure

CONTAINER_HOME = "/home/ubuntu"
"""Path that models use for the workspace even where the workspace is elsewhere."""
WindowAction = Literal["back", "forward", "reload", "close", "next", "previous", "new"]
"""Action of a browser's window. CDP sends keys to the page only, so the service performs these actions itself."""

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*):(?!\d)", re.IGNORECASE)
_OPENED_SCHEMES = frozenset({"http", "https", "data", "file"})
_HTTPS_PORTS = frozenset({None, 443})
_MODIFIERS = ("Control", "Alt", "Shift", "Meta")
_NAMED_KEYS = (
    *_MODIFIERS,
    *("Enter", "Escape", "Tab", "Backspace", "Delete", "Insert", "Home", "End", "PageUp", "PageDown"),
    *("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"),
)
_KEY_ALIASES: Mapping[str, str] = {name.lower(): name for name in _NAMED_KEYS} | {
    "ctrl": "Control",
    "option": "Alt",
    "cmd": "Meta",
    "command": "Meta",
    "super": "Meta",
    "win": "Meta",
    "return": "Enter",
    "esc": "Escape",
    "space": " ",
    "spacebar": " ",
    "del": "Delete",
    "ins": "Insert",
    "page_up": "PageUp",
    "pgup": "PageUp",
    "page_down": "PageDown",
    "pgdn": "PageDown",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "plus": "+",
}
_WINDOW_ACTIONS: Mapping[str, WindowAction] = {
    "Alt+ArrowLeft": "back",
    "Alt+ArrowRight": "forward",
    "F5": "reload",
    "Control+F5": "reload",
    "Control+r": "reload",
    "Control+Shift+r": "reload",
    "Control+w": "close",
    "Control+F4": "close",
    "Control+Tab": "next",
    "Control+Shift+Tab": "previous",
    "Control+t": "new",
}


def candidate_urls(url: str, home: str) -> tuple[str, ...]:
    """Return the URLs to try for `url`, in order.

    Only files of the workspace are opened. That prevents mistakes; it is no security boundary, because the agent's
    shell can read every file of the sandbox.

    Args:
        url: A URL, a host without a scheme, or a path of the workspace.
        home: The absolute path of the workspace.

    Raises:
        BrowserFailure: `url` is not a URL, or its scheme is not opened.
    """
    url = url.strip()
    if url.startswith(("~", "/")) and not url.startswith("//"):
        return (_file_url(url, home),)
    if url.startswith("//"):
        return (f"https:{url}",)
    match = _SCHEME.match(url)
    if match is None:
        return _guess_scheme(url)
    scheme = match[1].lower()
    if scheme == "javascript":
        raise BrowserFailure("Run JavaScript with browser_console_exec.")
    if url.lower() == "about:blank":
        return ("about:blank",)
    if scheme not in _OPENED_SCHEMES:
        raise BrowserFailure(
            f"{scheme}: URLs are not opened; http, https, data and files of the workspace (~/name) are."
        )
    if scheme == "file":
        path = _path_of(url)
        if path is None:
            raise BrowserFailure(f"{url[:200]} is not a URL.")
        return (_file_url(path, home),)
    if scheme in ("http", "https") and not _host(url):
        raise BrowserFailure(f"{url[:200]} is not a URL: it names no host.")
    return (url,)


def workspace_path(path: str, home: str) -> str:
    """Return the absolute path in the sandbox for a path that is absolute, below `~`, or relative to `home`."""
    path = path.strip()
    if path == "~" or path.startswith("~/"):
        path = posixpath.join(home, path[2:])
    elif path == CONTAINER_HOME or path.startswith(CONTAINER_HOME + "/"):
        path = home + path[len(CONTAINER_HOME) :]
    return posixpath.normpath(posixpath.join(home, path))


def shown_path(path: str, home: str) -> str:
    """Return `path` as the model reads it: the workspace is `~`, wherever it really is."""
    root = home.rstrip("/")
    return "~" + path[len(root) :] if path == root or path.startswith(root + "/") else path


def shown_url(url: str, home: str) -> str:
    """Return `url` as the model reads it: a file of the workspace as its path below `~`."""
    if not url.lower().startswith("file:"):
        return url
    path = _path_of(url)
    if path is None:
        return url
    shown = shown_path(path, home)
    return shown if shown != path else url


def parse_keys(key: str) -> str:
    """Return a key or key combination in Playwright's notation: `ctrl + A` becomes `Control+A`."""
    if len(key) == 1:
        return key
    ends_with_plus = key.rstrip().endswith("++") or key.strip() == "+"
    parts = [part.strip() for part in key.strip().rstrip("+" if ends_with_plus else "").split("+")]
    parts = [_key_name(part) for part in parts if part]
    if ends_with_plus:
        parts.append("+")
    modifiers = [each for each in _MODIFIERS if each in parts[:-1]]
    others = [each for each in parts[:-1] if each not in _MODIFIERS]
    return "+".join([*modifiers, *others, *parts[-1:]])


def window_action(keys: str) -> WindowAction | None:
    """Return what parsed `keys` do in a browser's window; None if they are for the page."""
    head, plus, last = keys.rpartition("+")
    return _WINDOW_ACTIONS.get(f"{head}{plus}{last.lower()}" if len(last) == 1 else keys)


def _key_name(part: str) -> str:
    is_function_key = len(part) in (2, 3) and part[0] in "fF" and part[1:].isdigit()
    return _KEY_ALIASES.get(part.lower()) or (part.upper() if is_function_key else part)


def _file_url(path: str, home: str) -> str:
    absolute = workspace_path(path, home)
    if absolute != home and not absolute.startswith(home.rstrip("/") + "/"):
        raise BrowserFailure("Only files of the workspace are opened: ~/name.")
    return "file://" + quote(absolute, errors="replace")


def _path_of(url: str) -> str | None:
    """Return the path of a URL; None if it is not a URL."""
    try:
        return unquote(urlsplit(url).path)
    except ValueError:
        return None


def _guess_scheme(url: str) -> tuple[str, ...]:
    secure, plain = f"https://{url}", f"http://{url}"
    if not url or re.search(r"\s", url) or not _host(secure):
        raise BrowserFailure(f"{url[:200]!r} is not a URL. To look something up, use info_search_web.")
    parts = urlsplit(secure)
    return (plain, secure) if _is_local(parts.hostname or "") or parts.port not in _HTTPS_PORTS else (secure, plain)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
        return parts.hostname or ""
    except ValueError:
        return ""


def _is_local(host: str) -> bool:
    """Return whether the host is unlikely to have a certificate: an IP address, or a name without a public domain."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
    return True
