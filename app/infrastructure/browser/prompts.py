"""What pages ask a person for: permissions, devices, accounts. All of it is denied at once, and noted.

Chromium denies every permission that is not in `GRANTED`, so a kind that a later version adds is denied too. The script
`page.js` refuses choosers that are no permissions, and reports both.
"""

import logging
from collections.abc import Callable, Mapping

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp

log = logging.getLogger(__name__)

GRANTED = (
    *("backgroundSync", "clipboardSanitizedWrite", "durableStorage", "keyboardLock", "paymentHandler", "pointerLock"),
    *("sensors", "storageAccess", "wakeLockScreen"),
)
"""Permissions that give a page nothing beyond itself."""
MAX_URL = 200
"""Maximum length of a URL in a note."""

_ASKED_FOR: Mapping[str, str] = {
    "location": "the location",
    "notifications": "permission to show notifications",
    "push": "permission to send push messages",
    "clipboard": "the content of the clipboard",
    "camera": "a camera or a microphone",
    "midi": "MIDI devices",
    "idle": "permission to detect idle users",
    "screens": "the arrangement of the screens",
    "fonts": "the installed fonts",
    "screen": "a picture of the screen",
    "device": "a device (USB, Bluetooth, serial, HID or a second screen)",
    "color": "a color of the screen",
    "payment": "a payment with the browser",
    "folder": "a folder",
    "passkey": "a passkey or a security key (sign in in another way)",
    "account": "an account of the browser (sign in in another way)",
    "handler": "permission to open links of its own scheme",
}


async def deny_permissions(channel: cdp.Channel, context_id: str) -> None:
    """Make Chromium deny at once every permission that a page asks for, except those in `GRANTED`.

    Args:
        channel: The channel to the browser as a whole.
        context_id: Chromium's id of the browser context; empty for the default one.
    """
    context: cdp.Json = {"browserContextId": context_id} if context_id else {}
    try:
        await channel.send("Browser.grantPermissions", {"permissions": GRANTED, **context})
    except BrowserFailure as error:  # another version of Chromium, with other names
        log.warning("the browser denies all permissions: %s", error)
        await channel.send("Browser.grantPermissions", {"permissions": (), **context})


class LoginPrompts:
    """The login dialogs of HTTP authentication in one tab. Between actions, a person can use them."""

    def __init__(self, channel: cdp.Channel, note: Callable[[str], None]) -> None:
        self._channel = channel
        self._note = note
        self._tasks = cdp.BackgroundTasks()
        channel.on("Fetch.requestPaused", lambda event: self._answer("Fetch.continueRequest", event))
        channel.on("Fetch.authRequired", self._on_login)

    async def cancel_all(self) -> None:
        """Cancel every login dialog until `stop`: one for an image would block the tab too.

        Chromium tells of a dialog only if the request was paused before. That takes 1 ms a request.
        """
        await self._channel.send("Fetch.enable", {"handleAuthRequests": True})

    async def stop(self) -> None:
        """Pause no more requests: between actions, that would cost CPU for nothing."""
        if not self._channel.lifetime.end_reason:
            await self._channel.try_send("Fetch.disable")

    def _on_login(self, event: cdp.Json) -> None:
        url, realm = cdp.text(event, "request", "url"), cdp.text(event, "authChallenge", "realm")
        self._note(
            f"{url[:MAX_URL]} wants a user name and a password{f' for {realm[:MAX_URL]!r}' if realm else ''}: "
            "navigate to it as https://name:password@host/."
        )
        self._answer("Fetch.continueWithAuth", event, {"authChallengeResponse": {"response": "CancelAuth"}})

    def _answer(self, method: str, event: cdp.Json, more: cdp.Json | None = None) -> None:
        self._tasks.start(self._channel.try_send(method, {"requestId": cdp.text(event, "requestId"), **(more or {})}))


def prompt_notes(asked: str) -> list[str]:
    """Return the notes for what `page.js` refused; `asked` has one line for each."""
    return [note for each in asked.splitlines() if (note := _note(each))]


def _note(line: str) -> str:
    what, _, detail = line.partition(" ")
    if what == "print":
        return "The page asked to print: there is no printer."
    if what == "program":
        return f"That link opens another program, which does not exist here: {detail[:MAX_URL]}"
    return f"The page asked for {_ASKED_FOR[what]}: denied." if what in _ASKED_FOR else ""
