"""Chromium's DevTools on its pipe, shared by many drivers.

Chromium has one DevTools connection, `--remote-debugging-pipe`, which only this program can reach. Each driver gets a
session of its own on it, which Chromium treats like a connection of its own. A driver does not see the id of that
session: it is added to what the driver sends and removed from what it receives.

What a driver sends is parsed and encoded again, so that Chromium reads the session that was checked here. Large
messages of Chromium, such as screenshots, are not parsed. Chromium writes `id` or `method` first and `sessionId` last;
the last key before the final brace is a key of the message itself, because quotes inside a string are escaped.
"""

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

Json = dict[str, object]

MAX_MESSAGE_BYTES = 128 * 1024 * 1024
"""Maximum size of a message in either direction, in bytes."""
CALL_SECONDS = 10.0
"""Maximum time for Chromium to answer a call of this program, in seconds."""
_SESSION_AT_END = re.compile(rb',?\s*"sessionId"\s*:\s*"([^"\\]{1,64})"\s*\}\s*\Z')
_END_BYTES = 256
"""Number of bytes at the end of a message to search for its session."""
_HEAD = re.compile(rb'\{"(?:id":(\d+)[,}]|method":"([\w.]+)"[,}])')
_ATTACHED, _DETACHED = b"Target.attachedToTarget", b"Target.detachedFromTarget"
_DOWNLOAD_FOLDER = "Browser.setDownloadBehavior"
_MAX_ID = 2**31 - 1
"""Largest id that Chromium takes."""
_INVALID_JSON, _INVALID_REQUEST, _TOO_LARGE, _NO_SESSION = -32700, -32600, -32000, -32001
"""Error codes, as Chromium uses them."""

log = logging.getLogger("sandbox")


class DevToolsError(Exception):
    """Chromium answered a call of this program with an error."""


class Driver(Protocol):
    """The connection of a driver."""

    def deliver(self, message: bytes | bytearray) -> None:
        """Send a message to the driver. Never wait: close the connection of a driver that does not read."""
        ...

    def close(self, reason: str) -> None:
        """Close the connection, because its browser or its page is gone."""
        ...

    def pause_driver(self) -> None:
        """Stop reading from the driver, because Chromium does not read."""
        ...

    def resume_driver(self) -> None:
        """Continue reading from the driver."""
        ...


@dataclass(eq=False)
class Attachment:
    """A driver's session on the pipe, and the sessions that the driver attached from it."""

    driver: Driver
    root: str
    sessions: set[str] = field(default_factory=set[str])


class DevTools:
    """Routes messages between one Chromium and its drivers."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """Create the routes of a new Chromium. `write`: sends bytes to its pipe; never waits."""
        self.browser_id = str(uuid.uuid4())
        """Identifies this run of the browser in addresses."""
        self.on_event: Callable[[str, Json], None] = lambda _method, _params: None
        """Called with method and params of each event that is not part of a driver's session."""
        self.on_download_folder: Callable[[str], None] = lambda _path: None
        """Called with the folder that a driver selects for downloads, before the browser learns it."""
        self._write = write
        self._owners: dict[str, Attachment] = {}
        self._calls: dict[int, tuple[asyncio.Future[Json], Callable[[Json], None]]] = {}
        self._last_id = 0
        self._closed = False
        self._paused = False

    async def call(self, method: str, on_result: Callable[[Json], None] | None = None, **params: object) -> Json:
        """Call a method in this program's own session and return its result.

        Args:
            method: Name of the method.
            on_result: Called with the result before the next message is read, even if the caller was cancelled.
            params: Parameters of the method.

        Raises:
            DevToolsError: Chromium refused.
            ConnectionError: Chromium has ended.
            TimeoutError: Chromium does not answer.
        """
        if self._closed:
            raise ConnectionResetError("the browser has ended")
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._post(method, params, future, on_result or (lambda _: None))
        async with asyncio.timeout(CALL_SECONDS):
            return await future

    async def attach(self, driver: Driver, target_id: str = "") -> Attachment:
        """Give `driver` a session with the browser, or with the target `target_id`.

        Raises:
            DevToolsError: There is no such target.
            ConnectionError, TimeoutError: As `call`.
        """
        attachment = Attachment(driver, "")
        abandoned = False

        def register(result: Json) -> None:
            session = result.get("sessionId")
            if isinstance(session, str) and self._owners.setdefault(session, attachment) is attachment:
                attachment.root = session
                if abandoned:
                    self.detach(attachment)

        try:
            if target_id:
                await self.call("Target.attachToTarget", register, targetId=target_id, flatten=True)
            else:
                await self.call("Target.attachToBrowserTarget", register)
            if not attachment.root:
                raise DevToolsError("Chromium gave no session.")
        except BaseException:
            abandoned = True
            self.detach(attachment)
            raise
        if self._paused:
            driver.pause_driver()
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """End the sessions of a driver. Idempotent."""
        for session in (attachment.root, *attachment.sessions):
            self._owners.pop(session, None)
        attachment.sessions.clear()
        if not self._closed and attachment.root:
            self._post("Target.detachFromTarget", {"sessionId": attachment.root})
        attachment.root = ""

    def send(self, attachment: Attachment, message: bytes | bytearray) -> None:
        """Forward a message of a driver to Chromium. Answer it with an error if it must not reach Chromium."""
        if self._closed or not attachment.root:
            return
        call = _parse(message)
        number = call.get("id") if call is not None else None
        session = call.setdefault("sessionId", attachment.root) if call is not None else None
        encoded = _encode(call) if call is not None else None
        if call is None or encoded is None:
            self._refuse(attachment, None, _INVALID_JSON, "JSON: the message is not a JSON object.")
        elif type(number) is not int or abs(number) > _MAX_ID:
            self._refuse(attachment, None, _INVALID_REQUEST, "Message must have integer 'id' property.")
        elif not isinstance(session, str) or self._owners.get(session) is not attachment:
            self._refuse(attachment, call, _NO_SESSION, "Session with given id not found.")
        else:
            self._note_download_folder(call)
            self._write(encoded + b"\0")

    def receive(self, message: bytearray) -> None:
        """Take a message of Chromium."""
        end = _SESSION_AT_END.search(message, max(0, len(message) - _END_BYTES))
        head = _HEAD.match(message)
        if end is None or head is None:
            self._receive_parsed(message)
            return
        session = end[1].decode("utf-8", "replace")
        attachment = self._owners.get(session)
        if attachment is None:
            return  # its driver has left
        if head[2] in (_ATTACHED, _DETACHED):
            self._track(attachment, _parse(message) or {})
        if session == attachment.root:
            message[end.start() :] = b"}"
        attachment.driver.deliver(message)

    def receive_oversized(self, head: bytes, tail: bytes) -> None:
        """Send an error for a call whose result is too large to be kept; drop a too large event.

        Args:
            head: The first bytes of the message.
            tail: Its last bytes.
        """
        found, end = _HEAD.match(head), _SESSION_AT_END.search(tail)
        session = end[1].decode("utf-8", "replace") if end is not None else ""
        attachment = self._owners.get(session)
        if found is None or not found[1] or attachment is None:
            log.warning("dropped an event of Chromium of more than %d bytes", MAX_MESSAGE_BYTES)
            return
        call: Json = {"id": int(found[1])}
        if session != attachment.root:
            call["sessionId"] = session
        self._refuse(attachment, call, _TOO_LARGE, f"The result is larger than {MAX_MESSAGE_BYTES} bytes.")

    def pause_drivers(self) -> None:
        """Stop reading from all drivers, because Chromium does not read."""
        self._paused = True
        for attachment in self._attachments():
            attachment.driver.pause_driver()

    def resume_drivers(self) -> None:
        """Continue reading from all drivers."""
        self._paused = False
        for attachment in self._attachments():
            attachment.driver.resume_driver()

    def close(self) -> None:
        """Fail the calls in progress and close all drivers, because Chromium has ended. Idempotent."""
        self._closed = True
        attachments = self._attachments()
        self._owners.clear()
        for attachment in attachments:
            attachment.driver.close("the browser has ended")
        calls, self._calls = self._calls, {}
        for future, _ in calls.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the browser has ended"))

    def _attachments(self) -> set[Attachment]:
        return set(self._owners.values())

    def _post(
        self,
        method: str,
        params: Json,
        future: asyncio.Future[Json] | None = None,
        on_result: Callable[[Json], None] = lambda _: None,
    ) -> None:
        self._last_id += 1
        if future is not None:
            self._calls[self._last_id] = (future, on_result)
        message = json.dumps({"id": self._last_id, "method": method, "params": params})
        self._write(message.encode() + b"\0")

    def _refuse(self, attachment: Attachment, call: Json | None, code: int, text: str) -> None:
        answer: Json = {key: call[key] for key in ("id", "sessionId") if key in call} if call else {}
        attachment.driver.deliver(json.dumps({**answer, "error": {"code": code, "message": text}}).encode())

    def _receive_parsed(self, message: bytearray) -> None:
        """Take a message of this program's own session, or one whose keys are in an unusual order."""
        found = _parse(message)
        if found is None:
            log.warning("dropped a message of Chromium that is not JSON")
        elif "sessionId" in found:
            session = found["sessionId"]
            attachment = self._owners.get(session) if isinstance(session, str) else None
            if attachment is not None:
                self._track(attachment, found)
                if session == attachment.root:
                    del found["sessionId"]
                attachment.driver.deliver(_encode(found) or b"{}")
        elif "id" in found:
            self._receive_result(found)
        else:
            params = _params(found)
            attachment = self._owners.get(str(params.get("sessionId")))
            if found.get("method") == _DETACHED.decode() and attachment is not None:
                attachment.driver.close("the page is gone")
            self.on_event(str(found.get("method")), params)

    def _receive_result(self, found: Json) -> None:
        number = found["id"]
        future, on_result = self._calls.pop(number, (None, None)) if isinstance(number, int) else (None, None)
        if future is None or on_result is None:
            return
        result, error = found.get("result"), found.get("error")
        if isinstance(result, dict):
            on_result(result)  # pyright: ignore[reportUnknownArgumentType]
        if future.done():
            return
        if isinstance(result, dict):
            future.set_result(result)  # pyright: ignore[reportUnknownArgumentType]
        else:
            text = error.get("message") if isinstance(error, dict) else error  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            future.set_exception(DevToolsError(str(text)))  # pyright: ignore[reportUnknownArgumentType]

    def _note_download_folder(self, call: Json) -> None:
        path = _params(call).get("downloadPath")
        if call.get("method") == _DOWNLOAD_FOLDER and isinstance(path, str):
            self.on_download_folder(path)

    def _track(self, attachment: Attachment, event: Json) -> None:
        session = _params(event).get("sessionId")
        if not isinstance(session, str):
            return
        if event.get("method") == _ATTACHED.decode():
            if self._owners.setdefault(session, attachment) is attachment and session != attachment.root:
                attachment.sessions.add(session)
        elif event.get("method") == _DETACHED.decode() and session in attachment.sessions:
            attachment.sessions.discard(session)
            del self._owners[session]


def _parse(message: bytes | bytearray) -> Json | None:
    """Return the object in `message`; None if there is none."""
    try:
        found: object = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _encode(message: Json) -> bytes | None:
    """Return `message` as JSON; None if it holds what Python reads but JSON has not, or is nested too deeply."""
    try:
        return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None


def _params(message: Json) -> Json:
    params = message.get("params")
    return params if isinstance(params, dict) else {}  # pyright: ignore[reportUnknownVariableType]
