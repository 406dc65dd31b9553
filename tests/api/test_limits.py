"""Limits of owners and of client addresses: what is refused with 429, when it works again, and who is not affected."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from app.domain.errors import Unauthorized
from app.domain.external.authenticator import Credentials
from app.domain.models.event import DoneEvent
from app.domain.models.limits import OwnerLimits, RateLimits
from app.domain.models.message import Usage
from app.domain.repositories.event_log import Commit
from tests.api.vnc_harness import VncHarness
from tests.support.api_harness import API, COMMIT_TIME, ApiHarness, serve
from tests.support.eventually import eventually

DAY = 86_400
ME, OTHER = {"authorization": "Bearer me"}, {"authorization": "Bearer other"}


class NameIsToken:
    """An `Authenticator` that takes every token for a name, except those that begin with `wrong`."""

    async def authenticate(self, credentials: Credentials) -> str:
        token = credentials.bearer_token()
        if token.startswith("wrong"):
            raise Unauthorized("no such token")
        return token

    async def is_known(self, name: str) -> bool:
        return True


def limited(*, rates: RateLimits | None = None, **limits: int) -> ApiHarness:
    return ApiHarness(authenticator=NameIsToken(), limits=OwnerLimits(**limits), rates=rates)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds by which the clock of the windows is ahead."""
    ahead = [0.0]
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + ahead[0])
    return ahead


def check_refusal(answer: httpx.Response, limit: str) -> int:
    """Check that `answer` is a refusal that names the limit. Return the seconds after which to try again."""
    assert answer.status_code == 429, answer.text
    body = answer.json()
    assert body["code"] == 429
    assert body["data"] is None
    assert limit in body["msg"]
    assert answer.headers["retry-after"].isdigit()
    return int(answer.headers["retry-after"])


async def test_requests_over_the_limit_get_429_until_the_window_ends(clock: list[float]) -> None:
    harness = limited(rates=RateLimits(requests_per_second=2))
    client = harness.client
    answers = [await client.get(API, headers=ME) for _ in range(11)]
    assert [answer.status_code for answer in answers[:10]] == [200] * 10
    seconds = check_refusal(answers[10], "LIMIT_REQUESTS_PER_SECOND")
    assert 1 <= seconds <= 5
    assert (await client.get(API, headers=OTHER)).status_code == 200
    assert (await client.get("/health", headers=ME)).status_code == 200
    clock[0] += seconds
    assert (await client.get(API, headers=ME)).status_code == 200
    assert harness.metrics.refusals == {"requests": 1}
    await harness.close()


async def test_sessions_over_the_limit_get_429_until_one_is_deleted() -> None:
    harness = limited(sessions=2)
    client = harness.client
    answers = await asyncio.gather(*(client.put(API, headers=ME) for _ in range(5)))
    created = [answer.json()["data"]["session_id"] for answer in answers if answer.status_code == 200]
    assert len(created) == 2
    check_refusal(next(answer for answer in answers if answer.status_code != 200), "2 of 2 (LIMIT_SESSIONS)")
    assert (await client.put(API, headers=OTHER)).status_code == 200
    await client.delete(f"{API}/{created[0]}", headers=ME)
    assert (await client.put(API, headers=ME)).status_code == 200
    assert harness.metrics.refusals == {"sessions": 3}
    await harness.close()


async def create(client: httpx.AsyncClient, owner: dict[str, str] = ME) -> str:
    return (await client.put(API, headers=owner)).json()["data"]["session_id"]


async def send(client: httpx.AsyncClient, session_id: str, owner: dict[str, str] = ME, key: str = "") -> httpx.Response:
    headers = owner | ({"idempotency-key": key} if key else {})
    return await client.post(f"{API}/{session_id}/chat", json={"message": "go"}, headers=headers)


async def test_run_over_the_limit_gets_429_and_its_message_is_not_stored() -> None:
    harness = limited(runs=1)
    client, worker = harness.client, harness.worker
    ended, running, idle = [await create(client) for _ in range(3)]
    other = await create(client, OTHER)
    assert (await send(client, ended, key="once")).status_code == 200
    worker.gate.clear()
    first = asyncio.create_task(send(client, running))
    await worker.waiting.wait()
    check_refusal(await send(client, idle, key="refused"), "1 of 1 (LIMIT_RUNS)")
    assert (await client.get(f"{API}/{idle}", headers=ME)).json()["data"]["events"] == []
    repeated = await send(client, ended, key="once")
    assert repeated.status_code == 200
    interrupting = asyncio.create_task(send(client, running))
    others = asyncio.create_task(send(client, other, OTHER))
    await eventually(lambda: worker.runs >= 4)
    worker.gate.set()
    assert [(await task).status_code for task in (first, interrupting, others)] == [200] * 3
    assert (await send(client, idle, key="refused")).status_code == 200
    await harness.close()


async def test_of_many_runs_that_start_at_once_only_as_many_as_allowed_start() -> None:
    harness = limited(runs=2)
    harness.worker.gate.clear()
    sessions = [await create(harness.client) for _ in range(10)]
    tasks = [asyncio.create_task(send(harness.client, session_id)) for session_id in sessions]
    await eventually(lambda: sum(task.done() for task in tasks) == 8)
    assert harness.worker.runs == 2
    harness.worker.gate.set()
    assert sorted([(await task).status_code for task in tasks]) == [200] * 2 + [429] * 8
    await harness.close()


@asynccontextmanager
async def open_stream(client: httpx.AsyncClient, session_id: str, owner: dict[str, str]) -> AsyncIterator[int]:
    async with client.stream("GET", f"{API}/{session_id}/events", headers=owner) as answer:
        parts = answer.aiter_bytes()  # kept, because a response whose iterator is collected is closed
        await anext(parts)
        yield answer.status_code


async def test_streams_over_the_limit_get_429_until_one_is_closed() -> None:
    harness = limited(streams=2)
    async with serve(harness) as client:
        mine, other = await create(client), await create(client, OTHER)
        async with open_stream(client, mine, ME) as first, client.stream("POST", API, headers=ME) as second:
            assert (first, second.status_code) == (200, 200)
            check_refusal(await client.get(f"{API}/{mine}/events", headers=ME), "2 of 2 (LIMIT_STREAMS)")
            check_refusal(await send(client, mine), "LIMIT_STREAMS")
            view = await client.post(
                f"{API}/{mine}/file", json={"file": "a"}, headers=ME | {"accept": "text/event-stream"}
            )
            check_refusal(view, "LIMIT_STREAMS")
            assert (await client.get(f"{API}/{mine}", headers=ME)).json()["data"]["events"] == []
            async with open_stream(client, other, OTHER) as status:
                assert status == 200

        async def opens() -> bool:
            async with open_stream(client, mine, ME) as status:
                return status == 200

        await eventually(opens)
    await harness.close()


async def test_viewer_over_the_limit_is_refused_in_the_handshake() -> None:
    async with VncHarness(api=ApiHarness(limits=OwnerLimits(streams=1))).run() as harness:
        session_id, sandbox = await harness.create_session()
        viewer = await harness.connect_viewer(session_id)
        await sandbox.opened.wait()
        with pytest.raises(InvalidStatus) as refused:
            await harness.connect_viewer(session_id)
        response = refused.value.response
        assert (response.status_code, response.headers["retry-after"]) == (429, "5")
        assert b"1 of 1 (LIMIT_STREAMS)" in (response.body or b"")
        await viewer.close()
        await eventually(lambda: not harness.viewers)
        await (await harness.connect_viewer(session_id)).close()


async def test_body_bytes_over_the_limit_get_429_for_a_day(clock: list[float]) -> None:
    harness = limited(rates=RateLimits(upload_bytes_per_day=2**20))
    client = harness.client
    session_id = await create(client)
    body = b'{"message": "%b"}' % (b"x" * 600_000)
    path = f"{API}/{session_id}/chat"
    assert (await client.post(path, content=body, headers=ME)).status_code == 413  # too long, but uploaded
    seconds = check_refusal(await client.post(path, content=body, headers=ME), "LIMIT_UPLOAD_BYTES_PER_DAY")
    assert DAY - 60 < seconds <= DAY

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield body[:100_000]

    check_refusal(await client.post(path, content=parts(), headers=ME), "LIMIT_UPLOAD_BYTES_PER_DAY")
    assert (await client.post(path, content=body, headers=OTHER)).status_code != 429
    assert (await client.get(API, headers=ME)).status_code == 200
    clock[0] += seconds
    assert (await client.post(path, content=body, headers=ME)).status_code == 413
    await harness.close()


async def test_tokens_over_the_limit_get_429_until_the_next_day() -> None:
    harness = limited(tokens_per_day=1_000)
    client = harness.client
    mine, second, other = await create(client), await create(client), await create(client, OTHER)
    await send(client, mine, key="before")
    usage = Usage(prompt_tokens=900, completion_tokens=100, calls=1)
    await harness.store.commit(mine, Commit(timestamp=COMMIT_TIME, events=[DoneEvent()], usage=usage))
    seconds = check_refusal(await send(client, second), "1000 of 1000 (LIMIT_TOKENS_PER_DAY)")
    assert (COMMIT_TIME + seconds) % DAY == 0
    assert (await send(client, mine, key="before")).status_code == 200
    assert (await send(client, other, OTHER)).status_code == 200
    harness.now += seconds
    assert (await send(client, second)).status_code == 200
    await harness.close()


async def test_failed_logins_block_new_credentials_of_the_address_only(clock: list[float]) -> None:
    harness = limited(rates=RateLimits(login_failures_per_minute=3))
    client = harness.client
    assert (await client.get(API, headers=ME)).status_code == 200
    guesses = [{"authorization": f"Bearer wrong{number}"} for number in range(4)]
    assert [(await client.get(API, headers=guess)).status_code for guess in guesses] == [401] * 3 + [429]
    seconds = check_refusal(await client.get(API, headers=guesses[0]), "LIMIT_LOGIN_FAILURES_PER_MINUTE")
    assert 1 <= seconds <= 60
    # A credential that was accepted before goes on working; a new one is not even looked at.
    assert (await client.get(API, headers=ME)).status_code == 200
    check_refusal(await client.get(API, headers=OTHER), "LIMIT_LOGIN_FAILURES_PER_MINUTE")
    elsewhere = httpx.AsyncClient(
        transport=httpx.ASGITransport(harness.app, client=("10.0.0.9", 1)), base_url="http://anker"
    )
    assert (await elsewhere.get(API, headers=OTHER)).status_code == 200
    await elsewhere.aclose()
    # A request without a credential is no guess.
    assert (await client.get(API)).status_code == 401
    clock[0] += seconds
    assert (await client.get(API, headers=guesses[0])).status_code == 401
    assert (await client.get(API, headers=OTHER)).status_code == 200
    await harness.close()


@pytest.mark.parametrize("query", ["?ticket", "?tic%6bet", "%0a?ticket"])
async def test_failed_tickets_count_as_failed_logins_whatever_else_the_request_has(query: str) -> None:
    harness = limited(rates=RateLimits(login_failures_per_minute=2))
    client, path = harness.client, f"{API}/{'0' * 32}/events{query}=guess"
    assert (await client.get(API, headers=ME)).status_code == 200
    headers = [{}, {"authorization": ""}, ME]
    assert [(await client.get(path, headers=each)).status_code for each in headers] == [401, 401, 429]
    check_refusal(await client.get(path, headers=ME), "LIMIT_LOGIN_FAILURES_PER_MINUTE")
    assert (await client.get(API, headers=ME)).status_code == 200
    await harness.close()


async def test_flood_of_one_owner_leaves_another_owner_quick() -> None:
    harness = limited(rates=RateLimits(requests_per_second=20))
    statuses: Counter[int] = Counter()
    async with serve(harness) as client, httpx.AsyncClient(base_url=client.base_url, timeout=60) as flooding:

        async def flood() -> None:
            for _ in range(50):
                statuses[(await flooding.get(API, headers=ME)).status_code] += 1

        flooders = asyncio.gather(*(flood() for _ in range(20)))
        seconds: list[float] = []
        while not flooders.done():
            began = time.perf_counter()
            assert (await client.get(API, headers=OTHER)).status_code == 200
            seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)
        await flooders
    assert sorted(statuses) == [200, 429]
    assert statuses.total() == 1_000
    assert statistics.median(seconds) < 1
    await harness.close()


async def test_limits_of_zero_refuse_nothing() -> None:
    harness = limited()
    session_id = await create(harness.client)
    assert (await send(harness.client, session_id)).status_code == 200
    assert {(await harness.client.get(API, headers=ME)).status_code for _ in range(50)} == {200}
    assert not harness.metrics.refusals
    await harness.close()
