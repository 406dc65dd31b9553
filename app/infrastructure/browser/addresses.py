"""What the model writes as a URL or a path, as what the browser opens."""

import ipaddress
import posixpath
import re
from urllib.parse import quote, unquote, urlsplit

from app.domain.errors import BrowserFailure

CONTAINER_HOME = "/home/ubuntu"
"""How the workspace is called where it is elsewhere, too."""

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*):(?!\d)", re.IGNORECASE)
_OPENED = frozenset({"http", "https", "data", "file"})
_HTTPS_PORTS = frozenset({None, 443})


def addresses(url: str, home: str) -> tuple[str, ...]:
    """What to open for `url`, in the order in which it is tried. `home` is the workspace.

    Files are opened from the workspace only. That keeps mistakes out, no attacker: the shell reads every file there is.

    Raises:
        BrowserFailure: it is no URL, or one that is not opened.
    """
    url = url.strip()
    if url.startswith(("~", "/")) and not url.startswith("//"):
        return (_file(url, home),)
    if url.startswith("//"):
        return (f"https:{url}",)
    scheme = _SCHEME.match(url)
    if scheme is None:
        return _guessed(url)
    name = scheme[1].lower()
    if name == "javascript":
        raise BrowserFailure("Run JavaScript with browser_console_exec.")
    if name == "about" and url.lower() == "about:blank":
        return ("about:blank",)
    if name not in _OPENED:
        raise BrowserFailure(f"{name}: URLs are not opened; http, https, data and files of the workspace (~/name) are.")
    if name == "file":
        return (_file(unquote(urlsplit(url).path), home),)
    if name in ("http", "https") and not _host(url):
        raise BrowserFailure(f"{url[:200]} is not a URL: it names no host.")
    return (url,)


def workspace_path(path: str, home: str) -> str:
    """An absolute path of the sandbox for `path`: as it is, below `~`, or relative to the workspace `home`."""
    path = path.strip()
    if path == "~" or path.startswith("~/"):
        path = posixpath.join(home, path[2:])
    elif path == CONTAINER_HOME or path.startswith(CONTAINER_HOME + "/"):
        path = home + path[len(CONTAINER_HOME) :]
    return posixpath.normpath(posixpath.join(home, path))


def shown_path(path: str, home: str) -> str:
    """`path` as it is told: what is in the workspace begins with `~`, wherever that really is."""
    root = home.rstrip("/")
    return "~" + path[len(root) :] if path == root or path.startswith(root + "/") else path


def shown_url(url: str, home: str) -> str:
    """`url` as it is told: a file of the workspace as its path."""
    if not url.lower().startswith("file:"):
        return url
    path = unquote(urlsplit(url).path)
    told = shown_path(path, home)
    return told if told != path else url


def _file(path: str, home: str) -> str:
    absolute = workspace_path(path, home)
    if absolute != home and not absolute.startswith(home.rstrip("/") + "/"):
        raise BrowserFailure("Only files of the workspace are opened: ~/name.")
    return "file://" + quote(absolute)


def _guessed(url: str) -> tuple[str, ...]:
    if not url or re.search(r"\s", url) or not _host(f"https://{url}"):
        raise BrowserFailure(f"{url[:200]!r} is not a URL. To look something up, use info_search_web.")
    parts = urlsplit(f"https://{url}")
    secure, plain = f"https://{url}", f"http://{url}"
    near = _is_near(parts.hostname or "") or parts.port not in _HTTPS_PORTS
    return (plain, secure) if near else (secure, plain)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
        return parts.hostname or ""
    except ValueError:
        return ""


def _is_near(host: str) -> bool:
    """Whether it is a machine that hardly has a certificate: an address, or a name without a dot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
    return True
