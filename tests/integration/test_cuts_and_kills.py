"""Streams dropped and services killed at random points. A failure prints its seed; `CUTS_SEED` repeats it."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.invariants import check_log
from tests.support.marking import MarkingModel, read_marks
from tests.support.reader import ChatReader, stored_frames
from tests.support.service import ServiceProcess
from tests.support.strict_server import violation

USER_MESSAGE_ID = "000000000001"
"""ID of the event with the user's first message."""

SEED = int(os.environ.get("CUTS_SEED", random.SystemRandom().randrange(10**6)))


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


def start_reading(reader: ChatReader, http: httpx.AsyncClient, message: str = "") -> "asyncio.Task[None]":
    """Start a task that reads until the stream ends or the service dies."""

    async def read() -> None:
        with suppress(httpx.HTTPError):
            await reader.read(http, message)

    return asyncio.create_task(read())


async def test_stream_dropped_at_any_byte_resumes_without_gap_or_repetition(
    service: ServiceProcess, model: ScriptedOpenAI, rng: random.Random, tmp_path: Path
) -> None:
    model.reset(MarkingModel(rng, tmp_path / "marks"))
    client = await service.start()

    async def read_in_pieces() -> None:
        reader = ChatReader(await client.create_session())
        await reader.read(client.http, "Go \u2028 on", max_bytes=rng.randrange(10, 3_000))
        while not reader.at_end:
            await reader.read(client.http, max_bytes=rng.randrange(200, 3_000))
            if reader.frames[:1] and reader.frames[0].id == USER_MESSAGE_ID:
                del reader.frames[0]  # Dropped before its first frame, a stream has no ID to resume from.
        assert reader.frames == (await stored_frames(client, reader.session_id))[1:]

    for _ in range(5):
        await asyncio.gather(*(read_in_pieces() for _ in range(4)))
    await client.close()


async def test_runs_continue_after_every_kill_without_repeating_a_command(
    service: ServiceProcess, model: ScriptedOpenAI, rng: random.Random, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    model.reset(MarkingModel(rng, marks))
    client = await service.start()
    readers: list[ChatReader] = []
    for _ in range(5):
        new_reader = ChatReader(await client.create_session())
        reading = [start_reading(new_reader, client.http, "Go")]
        reading += [start_reading(reader, client.http) for reader in readers if reader.frames and not reader.at_end]
        readers.append(new_reader)
        await asyncio.sleep(rng.random() * 0.8)
        await service.kill()
        await asyncio.gather(*reading)
        await client.close()
        client = await service.start()
    for reader in readers:
        async with asyncio.timeout(60):
            while not (reader.at_end or (await client.get_session(reader.session_id))["status"] == "pending"):
                await reader.read(client.http)
        history = await client.get_session(reader.session_id)
        check_log(history["events"])
        # A session stays pending if the service was killed before it had stored the message.
        assert history["status"] in ("completed", "pending")
        received = [frame for frame in reader.frames if frame.id != USER_MESSAGE_ID]
        assert received == (await stored_frames(client, reader.session_id))[1:]
    for request in model.asked:
        assert not violation(request.body)
    assert all(count == 1 for count in read_marks(marks).values()), "a command ran twice"
    await client.close()
