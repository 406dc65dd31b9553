"""Streams cut and services killed at random points. A failure prints the seed; `CUTS_SEED` plays it again."""

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
from tests.support.invariants import check_conversation, check_log
from tests.support.marking import MarkingModel, words_in
from tests.support.reader import ChatReader, stored_frames
from tests.support.service import ServiceProcess

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


def _until_the_end(reader: ChatReader, http: httpx.AsyncClient, message: str = "") -> "asyncio.Task[None]":
    """Read until the service or the stream ends."""

    async def read() -> None:
        with suppress(httpx.HTTPError):
            await reader.read(http, message)

    return asyncio.create_task(read())


async def test_a_stream_cut_at_any_byte_resumes_without_a_gap_or_a_repeat(
    service: ServiceProcess, model: ScriptedOpenAI, rng: random.Random, tmp_path: Path
) -> None:
    model.reset(MarkingModel(rng, tmp_path / "marks"))
    client = await service.start()

    async def one() -> None:
        reader = ChatReader(await client.create_session())
        await reader.read(client.http, "Go \u2028 on", max_bytes=rng.randrange(10, 3_000))
        while not reader.at_end:
            await reader.read(client.http, max_bytes=rng.randrange(200, 3_000))
            if reader.frames[:1] and reader.frames[0].id == "000000000001":
                del reader.frames[0]  # cut before the first frame, it had no id to resume from
        assert reader.frames == (await stored_frames(client, reader.session_id))[1:]

    for _ in range(5):
        await asyncio.gather(*(one() for _ in range(4)))
    await client.close()


async def test_runs_go_on_by_themselves_however_often_the_service_is_killed(
    service: ServiceProcess, model: ScriptedOpenAI, rng: random.Random, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    model.reset(MarkingModel(rng, marks))
    client = await service.start()
    readers: list[ChatReader] = []
    for _ in range(5):
        begun = ChatReader(await client.create_session())
        reading = [_until_the_end(begun, client.http, "Go")]
        reading += [_until_the_end(reader, client.http) for reader in readers if reader.frames and not reader.at_end]
        readers.append(begun)
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
        assert history["status"] in ("completed", "pending"), "a message that was never stored leaves it pending"
        own = [frame for frame in reader.frames if frame.id != "000000000001"]
        assert own == (await stored_frames(client, reader.session_id))[1:]
    for request in model.asked:
        check_conversation(request.messages)
    assert all(count == 1 for count in words_in(marks).values()), "a command ran twice"
    await client.close()
