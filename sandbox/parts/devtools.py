"""Chromium's DevTools on its pipe, shared by many drivers.

Chromium has one DevTools connection, `--remote-debugging-pipe`, which only this program can reach. Each driver gets a
session of its own on it, which Chromium treats like a connection of its own. A driver does not see the id of that
session: it is added to what the driver sends and removed from what it receives.

Large messages, such as screenshots, are not parsed. Chromium writes `id` or `method` first and `sessionId` last; the
last key before the final brace is a key of the message itself, because quotes inside a string are escaped.
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
_DOWNLOAD_FOLDER = b"Browser.setDownloadBehavior"
_SMALL_BYTES = 16 * 1024
"""Size of a message from which it is not looked at."""
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
            attachment.root = str(result["sessionId"])
            self._owners[attachment.root] = attachment
            if abandoned:
                self.detach(attachment)

        try:
            if target_id:
                await self.call("Target.attachToTarget", register, targetId=target_id, flatten=True)
            else:
                await self.call("Target.attachToBrowserTarget", register)
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
        if len(message) < _SMALL_BYTES and _DOWNLOAD_FOLDER in message:
            self._note_download_folder(message)
        # A NUL ends a message on the pipe: what follows it would be a message outside the driver's session.
        end = None if b"\0" in message else _SESSION_AT_END.search(message, max(0, len(message) - _END_BYTES))
        if end is None:
            self._send_parsed(attachment, message)
        elif self._owners.get(end[1].decode("utf-8", "replace")) is attachment:
            self._write(bytes(message) + b"\0")
        else:
            self._refuse(attachment, _parse(message), _NO_SESSION, "Session with given id not found.")

    def receive(self, message: bytearray) -> None:
        """Take a message of Chromium."""
        end = _SESSION_AT_END.search(message, max(0, len(message) - _END_BYTES))
        head = _HEAD.match(message)
        if end is None or head is None:
            self._receive_parsed(message)
            return
        session = end[1].decode()
        attachment = self._owners.get(session)
        if attachment is None:
            return  # its driver has left
        if head[2] in (_ATTACHED, _DETACHED):
            self._track(attachment, message, attached=head[2] == _ATTACHED)
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
        attachment = self._owners.get(end[1].decode()) if end is not None else None
        if found is None or not found[1] or end is None or attachment is None:
            log.warning("dropped an event of Chromium of more than %d bytes", MAX_MESSAGE_BYTES)
            return
        call: Json = {"id": int(found[1])}
        if (session := end[1].decode()) != attachment.root:
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

    def _send_parsed(self, attachment: Attachment, message: bytes | bytearray) -> None:
        call = _parse(message)
        if call is None:
            self._refuse(attachment, call, _INVALID_JSON, "JSON: the message is not a JSON object.")
        elif not isinstance(call.get("id"), int):
            self._refuse(attachment, call, _INVALID_REQUEST, "Message must have integer 'id' property.")
        elif self._owners.get(str(call.setdefault("sessionId", attachment.root))) is not attachment:
            self._refuse(attachment, call, _NO_SESSION, "Session with given id not found.")
        else:
            self._write(json.dumps(call).encode() + b"\0")

    def _refuse(self, attachment: Attachment, call: Json | None, code: int, text: str) -> None:
        answer: Json = {key: call[key] for key in ("id", "sessionId") if key in call} if call else {}
        attachment.driver.deliver(json.dumps({**answer, "error": {"code": code, "message": text}}).encode())

    def _receive_parsed(self, message: bytearray) -> None:
        """Take a message of this program's own session, or one whose keys are in an unusual order."""
        found = _parse(message)
        if found is None:
            log.warning("dropped a message of Chromium that is not JSON")
        elif "sessionId" in found:
            session = found.pop("sessionId")
            first = {key: found[key] for key in ("id", "method") if key in found}
            usual = json.dumps({**first, **found, "sessionId": session}, separators=(",", ":"))
            self.receive(bytearray(usual.encode()))
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

    def _note_download_folder(self, message: bytes | bytearray) -> None:
        call = _parse(message) or {}
        path = _params(call).get("downloadPath")
        if call.get("method") == _DOWNLOAD_FOLDER.decode() and isinstance(path, str):
            self.on_download_folder(path)

    def _track(self, attachment: Attachment, message: bytearray, *, attached: bool) -> None:
        session = str(_params(_parse(message) or {}).get("sessionId"))
        if attached:
            attachment.sessions.add(session)
            self._owners[session] = attachment
        elif session in attachment.sessions:
            attachment.sessions.discard(session)
            del self._owners[session]


def _parse(message: bytes | bytearray) -> Json | None:
    """Return the object in `message`; None if there is none."""
    try:
        found: object = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _params(message: Json) -> Json:
    params = message.get("params")
    return params if isinstance(params, dict) else {}  # pyright: ignore[reportUnknownVariableType]
