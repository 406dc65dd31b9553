"""Streams cut and services killed at random points. A failure prints the seed; `CUTS_SEED` plays it again."""

import asyncio
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.fakes.scripted_openai import Asked, Call, Reply, ScriptedOpenAI
from tests.support.invariants import check_conversation, check_log
from tests.support.service import Client, ServiceProcess

SEED = int(os.environ.get("CUTS_SEED", random.SystemRandom().randrange(10**6)))

Frame = tuple[str, str, bytes]
"""A frame's id, event and data, byte for byte."""


class Reader:
    """A client that keeps what it saw, across as many streams as it takes."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.seen: list[Frame] = []

    @property
    def ended(self) -> bool:
        return bool(self.seen) and self.seen[-1][1] in ("done", "error", "wait")

    async def read(self, http: httpx.AsyncClient, message: str = "", *, bytes_at_most: int | None = None) -> None:
        """Open a stream where the last one broke off; cut it after so many bytes."""
        body: dict[str, Any] = {"message": message}
        if self.seen:
            body["event_id"] = self.seen[-1][0]
        rest, taken = b"", 0
        async with http.stream("POST", f"/api/v1/sessions/{self.session}/chat", json=body) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_raw():
                left = len(chunk) if bytes_at_most is None else bytes_at_most - taken
                taken += len(chunk)
                *frames, rest = (rest + chunk[:left]).split(b"\n\n")
                self.seen += [_parsed(frame) for frame in frames if not frame.startswith(b":")]
                if left < len(chunk):
                    return


def _parsed(frame: bytes) -> Frame:
    number, event, data = frame.split(b"\n")
    assert data.startswith(b"data: {")
    return number.removeprefix(b"id: ").decode(), event.removeprefix(b"event: ").decode(), data.removeprefix(b"data: ")


async def stored(client: Client, session: str) -> list[Frame]:
    """The history as the frames that carry it: the very bytes of every `data`."""
    text = (await client.http.get(f"/api/v1/sessions/{session}")).content.decode()
    found: list[Frame] = []
    position = text.index('"events":[') + len('"events":[')
    while text[position] == "{":
        start = text.index('"data":', position) + len('"data":')
        data, end = json.JSONDecoder().raw_decode(text, start)
        found.append((data["event_id"], text[position:start].split('"')[3], text[start:end].encode()))
        position = end + len("},")
    return found


@pytest.fixture
def rng() -> random.Random:
    print(f"CUTS_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
async def service(model: ScriptedOpenAI, tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    service = ServiceProcess(
        tmp_path / "data", API_KEY="sk-0123456789", API_BASE=model.url, SANDBOX_PROVIDER="local", LOG_LEVEL="DEBUG"
    )
    yield service
    await service.stop()
    log = service.log.read_text()
    assert "Traceback" not in log, log[-4000:]
    assert all(json.loads(line) for line in log.splitlines())


class Worker:
    """A model that leaves marks: each call appends a word to a file that no other call appends."""

    def __init__(self, rng: random.Random, marks: Path) -> None:
        self._rng = rng
        self._marks = marks
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Reply:
        with self._lock:
            delay = self._rng.random() * 0.03
        if asked.kind == "planning":
            steps = [{"id": str(n), "description": f"Step {n}"} for n in (1, 2)]
            plan = {"title": "T", "message": "I will.", "goal": "G", "steps": steps}
            return Reply(calls=[Call("create_plan", plan)], delay=delay)
        if asked.kind == "final":
            return Reply(text="All is done, at last. " * 5, size=20, delay=delay / 5)
        turns = [message["role"] for message in asked.messages]
        done = turns[::-1].index("user") - turns[::-1][: turns[::-1].index("user")].count("tool")
        if done < 2:
            command = f"echo {uuid4().hex} >> {self._marks}"
            return Reply(calls=[Call("shell_exec", {"id": "main", "exec_dir": "~", "command": command})], delay=delay)
        return Reply(calls=[Call("complete_step", {"success": True, "result": "ok"})], delay=delay)


def _until_the_end(reader: Reader, http: httpx.AsyncClient, message: str = "") -> "asyncio.Task[None]":
    """Read until the service or the stream ends."""

    async def read() -> None:
        with suppress(httpx.HTTPError):
            await reader.read(http, message)

    return asyncio.create_task(read())


async def test_a_stream_cut_at_any_byte_resumes_without_a_gap_or_a_repeat(
    service: ServiceProcess, model: ScriptedOpenAI, rng: random.Random, tmp_path: Path
) -> None:
    model.reset(Worker(rng, tmp_path / "marks"))
    client = await service.start()

    async def one() -> None:
        reader = Reader(await client.create())
        await reader.read(client.http, "Go \u2028 on", bytes_at_most=rng.randrange(10, 3_000))
        while not reader.ended:
            await reader.read(client.http, bytes_at_most=rng.randrange(200, 3_000))
            if reader.seen[:1] and reader.seen[0][0] == "000000000001":
                del reader.seen[0]  # cut before the first frame, it had no id to resume from
        assert reader.seen == (await stored(client, reader.session))[1:]

    for _ in range(5):
        await asyncio.gather(*(one() for _ in range(4)))
    await client.close()


async def test_runs_go_on_by_themselves_however_often_the_service_is_killed(
    service: ServiceProcess, model: ScriptedOpenAI, rng: random.Random, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    model.reset(Worker(rng, marks))
    client = await service.start()
    readers: list[Reader] = []
    for _ in range(5):
        begun = Reader(await client.create())
        reading = [_until_the_end(begun, client.http, "Go")]
        reading += [_until_the_end(reader, client.http) for reader in readers if reader.seen and not reader.ended]
        readers.append(begun)
        await asyncio.sleep(rng.random() * 0.8)
        await service.kill()
        await asyncio.gather(*reading)
        await client.close()
        client = await service.start()
    for reader in readers:
        async with asyncio.timeout(20):
            while not (reader.ended or (await client.history(reader.session))["status"] == "pending"):
                await reader.read(client.http)
        history = await client.history(reader.session)
        check_log(history["events"])
        assert history["status"] in ("completed", "pending"), "a message that was never stored leaves it pending"
        own = [frame for frame in reader.seen if frame[0] != "000000000001"]
        assert own == (await stored(client, reader.session))[1:]
    for request in model.asked:
        check_conversation(request.messages)
    words = marks.read_text().split() if marks.exists() else []
    assert len(words) == len(set(words)), "a command ran twice"
    await client.close()
