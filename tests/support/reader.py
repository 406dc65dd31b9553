"""A client that keeps every frame of a chat, byte for byte, over as many streams as it takes."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tests.support.service import ApiClient
from tests.support.sse import SseFrame, SseParser

TERMINAL_EVENTS = ("done", "error", "wait")
"""Types of the events after which a chat stream ends."""


class RequestRefused(Exception):
    """The service responded with `status` instead of a stream."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class ChatReader:
    """Reads the chat of one session, from the event after number `after`."""

    def __init__(self, session_id: str, *, after: int = 0) -> None:
        self.session_id = session_id
        self.after = after
        self.frames: list[SseFrame] = []
        self.arrival_times: list[float] = []
        """The monotonic time at which each frame arrived."""
        self.accepted = asyncio.Event()
        """Set once a stream was opened: the message that was sent with it is stored."""

    @property
    def at_end(self) -> bool:
        """Whether the last frame ends a run or asks the user."""
        return bool(self.frames) and self.frames[-1].event in TERMINAL_EVENTS

    @property
    def last_event_number(self) -> int:
        return self.frames[-1].number if self.frames else self.after

    async def read(
        self, http: httpx.AsyncClient, message: str = "", *, key: str | None = None, max_bytes: int | None = None
    ) -> None:
        """Open a stream after the last event received; read it to its end, or drop it after `max_bytes`.

        Raises:
            RequestRefused: The service responded, but not with a stream.
            httpx.HTTPError: The connection to the service failed.
        """
        body: dict[str, Any] = {"message": message}
        if self.last_event_number:
            body["event_id"] = f"{self.last_event_number:012}"
        headers = {} if key is None else {"Idempotency-Key": key}
        parser, received = SseParser(), 0
        path = f"/api/v1/sessions/{self.session_id}/chat"
        async with http.stream("POST", path, json=body, headers=headers) as response:
            if response.status_code != 200:
                raise RequestRefused(response.status_code, (await response.aread()).decode())
            self.accepted.set()
            async for chunk in response.aiter_raw():
                left = len(chunk) if max_bytes is None else max_bytes - received
                received += len(chunk)
                self._keep([frame for frame in parser.feed(chunk[:left]) if frame.comment is None])
                if left < len(chunk):
                    return

    def _keep(self, frames: Sequence[SseFrame]) -> None:
        self.frames += frames
        self.arrival_times += [time.monotonic()] * len(frames)

    def check(self, history: Sequence[SseFrame]) -> None:
        """Assert that the frames are the part of `history` that the reader asked for.

        The user's messages may be missing: a stream leaves out the message that it was opened with.
        """
        numbers = [frame.number for frame in self.frames]
        assert numbers == sorted(set(numbers)), f"a stream went back: {numbers}"
        after = self.after or (numbers[0] - 1 if numbers else 0)
        expected = [frame for frame in history if after < frame.number <= self.last_event_number]
        received, stored = _without_user_messages(self.frames), _without_user_messages(expected)
        assert received == stored, f"a stream after {after} differs from the history: {set(received) ^ set(stored)}"
        assert set(self.frames) <= set(expected)


def _without_user_messages(frames: Sequence[SseFrame]) -> list[SseFrame]:
    return [frame for frame in frames if frame.event != "message" or frame.data["role"] != "user"]


async def stored_frames(client: ApiClient, session_id: str) -> list[SseFrame]:
    """Return the history as the frames that carry it, with the exact bytes of every `data`."""
    response = await client.http.get(f"/api/v1/sessions/{session_id}")
    if response.status_code != 200:
        raise RequestRefused(response.status_code, response.text)
    text = response.content.decode()
    found: list[SseFrame] = []
    position = text.index('"events":[') + len('"events":[')
    while text[position] == "{":
        start = text.index('"data":', position) + len('"data":')
        data, end = json.JSONDecoder().raw_decode(text, start)
        found.append(SseFrame(text[position:start].split('"')[3], data["event_id"], text[start:end].encode()))
        position = end + len("},")
    return found
