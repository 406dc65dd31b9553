"""What must hold after a storm, for everything that happened in it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event
from tests.chaos.lives import Life
from tests.fakes.scripted_openai import Asked
from tests.support.cluster import Cluster
from tests.support.invariants import check_conversation, check_log
from tests.support.marking import check_marks, task_of, words_in
from tests.support.reader import stored_frames
from tests.support.sse import SseFrame

LEASE_SECONDS = 10.0
"""After the last process died, every lease is over by then."""


async def check_lives(cluster: Cluster, lives: Sequence[Life], asked: Sequence[Asked], marks: Path) -> None:
    """The logs, the streams, the marks, and what the model was asked."""
    histories: list[list[SseFrame]] = []
    for life in lives:
        if life.deleted:
            await _check_gone(cluster, life)
            continue
        history = await stored_frames(cluster.apis[0], life.session)
        for other in cluster.apis[1:]:
            assert await stored_frames(other, life.session) == history
        try:
            _check_life(life, history)
        except AssertionError as error:
            log = "\n".join(f"{frame.id} {frame.event} {frame.raw.decode()}" for frame in history)
            raise AssertionError(f"{life.name} ({life.kind}), session {life.session}: {error}\n{log}") from error
        histories.append(history)
    for request in asked:
        check_conversation(request.messages)
    _check_read(lives, asked)
    check_marks(histories, words_in(marks))
    for client in cluster.apis:
        await _check_rest(client.http)


def _check_life(life: Life, history: Sequence[SseFrame]) -> None:
    check_log(events_of(history))
    for reader in (life.reader, *life.views):
        reader.check(history)
    assert not life.reader.frames or life.reader.frames[0].number <= 2, "the reader does not have the beginning"
    assert not history or life.reader.last_event_number == history[-1].number, "the reader does not have the end"
    said = Counter(
        event["data"]["content"]
        for event in events_of(history)
        if event["event"] == "message" and event["data"]["role"] == "user"
    )
    for words in life.heard:
        assert said[words] == 1, f"{words!r} is there {said[words]} times"
        del said[words]
    for words in life.unsure:
        assert said.pop(words, 0) <= 1
    assert not said, f"nobody said {said}"


async def _check_gone(cluster: Cluster, life: Life) -> None:
    for client in cluster.apis:
        assert (await client.http.get(f"/api/v1/sessions/{life.session}")).status_code == 404


def _check_read(lives: Sequence[Life], asked: Sequence[Asked]) -> None:
    """Every word that was taken was read by the model, unless its run was ended before."""
    read = {
        (task_of(request), message["content"])
        for request in asked
        if request.kind == "planning"
        for message in request.messages
        if message["role"] == "user"
    }
    for life in lives:
        if not life.endless:
            texts = "\n".join(text for name, text in read if name == life.name)
            for words in life.heard:
                assert words in texts, f"the model never read {words!r}"


async def _check_rest(http: Any) -> None:
    """No session is left active."""
    cursor = ""
    while cursor is not None:
        page = (await http.get("/api/v1/sessions", params={"limit": 100, "cursor": cursor} if cursor else {})).json()
        for session in page["data"]["sessions"]:
            assert session["status"] in ("completed", "pending"), session
        cursor = page["data"].get("next_cursor")


def events_of(history: Sequence[SseFrame]) -> list[dict[str, Any]]:
    """As `check_log` takes them."""
    return [{"event": frame.event, "data": frame.data} for frame in history]


async def check_at_rest(cluster: Cluster, sessions: Sequence[str]) -> None:
    """Nobody holds a lease, no stop is left unanswered, and Redis keeps nothing for ever."""
    assert cluster.mongod is not None and cluster.redis is not None
    url, nobody = cluster.mongod.url, lambda session_id, records: None
    async with MongoStore(url, cluster.database, encode=encode_event, on_committed=nobody) as store:
        async with asyncio.timeout(LEASE_SECONDS):
            for session in sessions:
                # Given back a moment after the run's last event; that of a process that died while it only held it
                # is over by itself.
                while (lease := await store.leases.acquire(session, holder="the test", seconds=1)) is None:
                    await asyncio.sleep(0.05)
                assert lease.stop_up_to is None
                await store.leases.release(lease)
        assert not await store.leases.list_claimable(limit=10)
    for key in await cluster.redis.execute("KEYS", "*"):
        assert await cluster.redis.execute("TTL", key) != -1, f"{key} never expires"
