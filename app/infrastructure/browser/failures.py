"""What goes wrong in a browser, in words for the model. Playwright's errors end here."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import TimeoutError as PlaywrightTimeout

from app.domain.errors import BrowserFailure

NOT_FOUND = 404
CONFLICT = 409

_NET_ERRORS: Mapping[str, str] = {
    "ERR_NAME_NOT_RESOLVED": "there is no host of that name",
    "ERR_NAME_RESOLUTION_FAILED": "the host's name could not be looked up",
    "ERR_CONNECTION_REFUSED": "nothing listens there",
    "ERR_CONNECTION_RESET": "the server broke off the connection",
    "ERR_CONNECTION_CLOSED": "the server closed the connection",
    "ERR_CONNECTION_TIMED_OUT": "the server did not answer",
    "ERR_TIMED_OUT": "the server did not answer",
    "ERR_ADDRESS_UNREACHABLE": "the host cannot be reached",
    "ERR_INTERNET_DISCONNECTED": "there is no network",
    "ERR_NETWORK_CHANGED": "the network changed meanwhile; try again",
    "ERR_EMPTY_RESPONSE": "the server sent nothing",
    "ERR_INVALID_RESPONSE": "the server's answer makes no sense",
    "ERR_INVALID_HTTP_RESPONSE": "the server does not speak HTTP",
    "ERR_TOO_MANY_REDIRECTS": "it redirects without end",
    "ERR_SSL_PROTOCOL_ERROR": "the server does not speak TLS there; http:// may work",
    "ERR_CERT_AUTHORITY_INVALID": "the certificate is from nobody that the browser trusts",
    "ERR_CERT_COMMON_NAME_INVALID": "the certificate is for another host",
    "ERR_CERT_DATE_INVALID": "the certificate has expired, or is not valid yet",
    "ERR_INVALID_AUTH_CREDENTIALS": "it wants a user name and a password, as in https://name:password@host/",
    "ERR_UNSAFE_PORT": "browsers refuse this port",
    "ERR_BLOCKED_BY_CLIENT": "the browser's settings block it",
    "ERR_BLOCKED_BY_ADMINISTRATOR": "the browser's settings block it",
    "ERR_FILE_NOT_FOUND": "there is no such file",
    "ERR_ACCESS_DENIED": "access to the file is denied",
    "ERR_INVALID_URL": "the URL is not valid",
    "ERR_UNKNOWN_URL_SCHEME": "browsers do not open such URLs",
    "ERR_HTTP_RESPONSE_CODE_FAILURE": "the server answered with an error and no page",
    "ERR_ABORTED": "there was nothing to show",
}
_NET_CODE = re.compile(r"ERR_[A-Z0-9_]+")


class ContextGone(BrowserFailure):
    """The document that was looked into is no longer there: the page went on to another."""

    def __init__(self) -> None:
        super().__init__("The page went on to another meanwhile: view it again.", status=CONFLICT)


class TabGone(BrowserFailure):
    """The tab was closed, or has crashed."""


class Hung(BrowserFailure):
    """The page does not answer: a script of its own keeps it busy."""

    def __init__(self) -> None:
        super().__init__(
            "The page does not respond: a script of its own keeps it busy. Navigate elsewhere, or restart the browser.",
            status=CONFLICT,
        )


def net_failure(error_text: str, url: str) -> BrowserFailure:
    """Why `url` could not be opened, from Chromium's `net::ERR_…`."""
    code = _NET_CODE.search(error_text)
    name = code.group() if code else error_text
    words = _NET_ERRORS.get(name)
    if words is None and name.startswith("ERR_CERT"):
        words = "its certificate is not valid"
    return BrowserFailure(
        f"{url} cannot be opened: {words} ({name})." if words else f"{url} cannot be opened ({name})."
    )


def gone(index: int) -> BrowserFailure:
    """The answer to an index that means nothing (any more)."""
    return BrowserFailure(
        f"There is no element [{index}] on the page now: use browser_view for the numbers that hold.", status=NOT_FOUND
    )


@contextmanager
def translated() -> Generator[None]:
    """Raise Playwright's errors as ours."""
    try:
        yield
    except PlaywrightTimeout as error:
        raise Hung from error
    except PlaywrightError as error:
        raise _in_words(error.message) from error


def _in_words(message: str) -> BrowserFailure:
    said = message.lower()
    if "termination request in progress" in said or "couldn't parse value object" in said:
        return Hung()  # a script that was told to end, and does not
    if "context with specified id" in said or "context was destroyed" in said or "navigated" in said:
        return ContextGone()
    if any(each in said for each in ("no frame", "frame was detached", "not attached to an active page")):
        return ContextGone()
    if "crash" in said:
        return TabGone("The tab crashed.", status=CONFLICT)
    if "closed" in said or "detached" in said:
        return TabGone("The tab was closed.", status=CONFLICT)
    first = re.sub(r"^[\w.]+: ", "", message.strip().partition("\n")[0])
    return BrowserFailure(f"The browser refused: {re.sub(r'^Protocol error [(][^)]*[)]: ', '', first)[:300]}")
