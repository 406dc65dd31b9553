"""PyMongo's asyncio client instead of Motor: one smoke test for each storage port."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from app.domain.errors import LeaseLost, NotFound
from app.domain.models.event import DoneEvent, MessageEvent
from app.domain.models.message import Usage, UserMessage
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.repositories.tickets import Ticket
from tests.contract.conftest import MongoHarness
from tests.support.stores import Mongod


@pytest.fixture
async def store(mongod: Mongod, cleanup: ThreadPoolExecutor) -> AsyncIterator[MongoHarness]:
    harness = MongoHarness(mongod, "pymongo")
    await harness.open()
    try:
        await harness.sessions.create("s", owner="me", at=1)
        yield harness
    finally:
        await harness.close()
        cleanup.submit(mongod.drop, harness.database)


async def test_event_log_stores_messages_and_commits(store: MongoHarness) -> None:
    messages = (store.event_log.append_user_message("s", "hello", at=1, key=key) for key in ("a", "a", "b"))
    results = await asyncio.gather(*messages)
    assert [result.number for result in results] == [1, 1, 2]
    checkpoint = Checkpoint(steps_started=1, revision="r")
    commit = Commit(
        timestamp=1,
        events=[MessageEvent(role="assistant", content="x")],
        messages=[("planner", UserMessage(content="hello"))],
        checkpoint=checkpoint,
        usage=Usage(calls=1),
        expected_revision="",
    )
    assert [record.number for record in await store.event_log.commit("s", commit)] == [3]
    assert list(await store.event_log.commit("s", commit)) == []
    await store.close()
    await store.open()
    assert [record.number for record in await store.event_log.read("s", after=0, limit=9)] == [1, 2, 3]
    assert [message.number for message in await store.event_log.unread_messages("s", after=1)] == [2]
    assert list(await store.event_log.load_transcript("s", "planner")) == [UserMessage(content="hello")]
    assert await store.event_log.load_checkpoint("s") == replace(checkpoint, title="hello")
    assert (await store.sessions.get("s", owner="me")).usage == Usage(calls=1)


async def test_sessions_are_created_listed_and_deleted(store: MongoHarness) -> None:
    await store.sessions.create("t", owner="me", at=2)
    first = await store.sessions.page(owner="me", limit=1, cursor=None)
    second = await store.sessions.page(owner="me", limit=1, cursor=first.next_cursor)
    assert [session.id for session in (*first.sessions, *second.sessions)] == ["t", "s"]
    await store.event_log.commit("s", Commit(timestamp=1, events=[MessageEvent(role="assistant", content="x")]))
    assert await store.sessions.mark_delivered("s", number=1) is True
    await store.sessions.delete("s", owner="me")
    with pytest.raises(NotFound):
        await store.sessions.get("s", owner="me")
    assert dict(await store.sessions.last_event_numbers(["s", "t"])) == {"t": 0}
    assert await store.sessions.check() is None


async def test_leases_fence_commits(store: MongoHarness) -> None:
    lease = await store.leases.acquire("s", holder="a", seconds=60)
    assert lease is not None
    assert await store.leases.acquire("s", holder="b", seconds=60) is None
    assert await store.leases.take_over("s", holder="b", seconds=60) == "a"
    with pytest.raises(LeaseLost):
        await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    await store.leases.request_stop("s", up_to=1)
    (renewed,) = await store.leases.renew(holder="b", seconds=60)
    assert renewed.stop_up_to == 1
    assert await store.leases.release(renewed) is False
    assert [each.session_id for each in await store.leases.list_claimable(limit=9)] == ["s"]


async def test_screenshots_are_stored(store: MongoHarness) -> None:
    await store.screenshots.put("s", "p", b"jpeg")
    assert await store.screenshots.get("s", "p") == b"jpeg"
    with pytest.raises(NotFound):
        await store.screenshots.get("s", "q")


async def test_ticket_is_redeemed_once(store: MongoHarness) -> None:
    ticket = Ticket(session_id="s", owner="me", view_only=True, expires_at=31.0)
    await store.tickets.put("d", ticket, at=1)
    redeems = (store.tickets.redeem("d", session_id="s", at=2) for _ in range(5))
    assert [found for found in await asyncio.gather(*redeems) if found is not None] == [ticket]
