"""Parse Server-Sent Events as a client receives them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class SseFrame:
    """One frame. A comment has `comment` and nothing else."""

    event: str = ""
    id: str | None = None
    raw: bytes = b""
    """The value of `data`, byte for byte."""
    comment: str | None = None

    @property
    def number(self) -> int:
        """The number of the event; 0 if the frame has no id."""
        return int(self.id or 0)

    @property
    def data(self) -> Any:
        """The value of `data`, decoded."""
        return json.loads(self.raw)


class SseParser:
    """Split the bytes of a stream into frames. Strict: fails for whatever the service never sends."""

    def __init__(self) -> None:
        self.rest = b""
        """The bytes received after the last complete frame."""

    def feed(self, chunk: bytes) -> list[SseFrame]:
        """Return the frames that `chunk` completes, comments included."""
        *blocks, self.rest = (self.rest + chunk).split(b"\n\n")
        return [_parse(block) for block in blocks]


def _parse(block: bytes) -> SseFrame:
    fields: dict[str, bytes] = {}
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        assert name.decode() not in fields, f"a field occurs twice in {block!r}"
        fields[name.decode()] = value.removeprefix(b" ")
    if "" in fields:
        assert len(fields) == 1, f"a comment and fields in {block!r}"
        return SseFrame(comment=fields[""].decode())
    assert {"event", "data"} <= fields.keys() <= {"event", "id", "data"}, f"unknown fields in {block!r}"
    number = fields.get("id")
    return SseFrame(fields["event"].decode(), None if number is None else number.decode(), fields["data"])


async def read_frames(response: httpx.Response, *, comments: bool = False) -> AsyncIterator[SseFrame]:
    """Yield the frames of a stream as they arrive, and fail if it ends within one."""
    parser = SseParser()
    async for chunk in response.aiter_bytes():
        for frame in parser.feed(chunk):
            if comments or frame.comment is None:
                yield frame
    assert not parser.rest, f"the stream ended within a frame: {parser.rest!r}"
