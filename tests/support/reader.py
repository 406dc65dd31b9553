"""A client that keeps every frame it saw, byte for byte, across as many streams as it takes."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tests.support.service import Client

Frame = tuple[str, str, bytes]
"""A frame's id, event and data, byte for byte."""

TERMINAL = ("done", "error", "wait")


class Refused(Exception):
    """A stream was not granted; `status` is that of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Reader:
    """Follows one session's chat. `start`: the number after which it looks; what lies before is not its affair."""

    def __init__(self, session: str, *, start: int = 0) -> None:
        self.session = session
        self.start = start
        self.seen: list[Frame] = []
        self.arrived: list[float] = []
        """When each frame came, on the monotonic clock."""
        self.granted = asyncio.Event()
        """Set once a stream was granted. A message that went with it is stored."""

    @property
    def ended(self) -> bool:
        """Whether the last that it saw was the end of a run, or a question."""
        return bool(self.seen) and self.seen[-1][1] in TERMINAL

    @property
    def position(self) -> int:
        """Number of the last event that it has."""
        return int(self.seen[-1][0]) if self.seen else self.start

    async def read(
        self, http: httpx.AsyncClient, message: str = "", *, key: str | None = None, bytes_at_most: int | None = None
    ) -> None:
        """Open a stream where the last one broke off; cut it after so many bytes.

        Raises:
            Refused: the service answered, but not with a stream.
            httpx.HTTPError: the service went away.
        """
        body: dict[str, Any] = {"message": message}
        if self.position:
            body["event_id"] = f"{self.position:012}"
        headers = {} if key is None else {"Idempotency-Key": key}
        rest, taken = b"", 0
        path = f"/api/v1/sessions/{self.session}/chat"
        async with http.stream("POST", path, json=body, headers=headers) as response:
            if response.status_code != 200:
                raise Refused(response.status_code, (await response.aread()).decode())
            self.granted.set()
            async for chunk in response.aiter_raw():
                left = len(chunk) if bytes_at_most is None else bytes_at_most - taken
                taken += len(chunk)
                *frames, rest = (rest + chunk[:left]).split(b"\n\n")
                self._keep([_parsed(frame) for frame in frames if not frame.startswith(b":")])
                if left < len(chunk):
                    return

    def _keep(self, frames: Sequence[Frame]) -> None:
        self.seen += frames
        self.arrived += [time.monotonic()] * len(frames)

    def check(self, history: Sequence[Frame]) -> None:
        """What it saw is the history from where it began to where it is; but for the user's own words, which a stream
        that brings them leaves out. Where a stream begins that named no position is not looked at."""
        numbers = [int(frame[0]) for frame in self.seen]
        assert numbers == sorted(set(numbers)), f"a stream went back: {numbers}"
        start = self.start or (numbers[0] - 1 if numbers else 0)
        theirs = [frame for frame in history if start < int(frame[0]) <= self.position]
        shown, there = _without_words(self.seen), _without_words(theirs)
        assert shown == there, f"a stream after {start} is not its history: {set(shown) ^ set(there)}"
        assert set(self.seen) <= set(theirs)


def _without_words(frames: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame[1] != "message" or json.loads(frame[2])["role"] != "user"]


def _parsed(frame: bytes) -> Frame:
    number, event, data = frame.split(b"\n")
    assert data.startswith(b"data: {")
    return number.removeprefix(b"id: ").decode(), event.removeprefix(b"event: ").decode(), data.removeprefix(b"data: ")


async def stored(client: Client, session: str) -> list[Frame]:
    """The history as the frames that carry it: the very bytes of every `data`."""
    response = await client.http.get(f"/api/v1/sessions/{session}")
    if response.status_code != 200:
        raise Refused(response.status_code, response.text)
    text = response.content.decode()
    found: list[Frame] = []
    position = text.index('"events":[') + len('"events":[')
    while text[position] == "{":
        start = text.index('"data":', position) + len('"data":')
        data, end = json.JSONDecoder().raw_decode(text, start)
        found.append((data["event_id"], text[position:start].split('"')[3], text[start:end].encode()))
        position = end + len("},")
    return found
