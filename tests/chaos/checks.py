"""The invariants that hold after any sequence of faults."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event
from tests.chaos.user_session import UserSession
from tests.fakes.scripted_openai import Asked
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.invariants import check_log
from tests.support.marking import check_marks, read_marks, task_of
from tests.support.reader import stored_frames
from tests.support.service import ApiClient
from tests.support.sse import SseFrame
from tests.support.strict_server import violation

LEASE_SECONDS = 10.0
"""Seconds after the end of the last process within which every lease expires."""


async def check_sessions(
    cluster: Cluster, sessions: Sequence[UserSession], asked: Sequence[Asked], marks: Path
) -> None:
    """Check the event logs, the streams, the marks and the model calls of `sessions`."""
    histories: list[list[SseFrame]] = []
    for session in sessions:
        if session.deleted:
            await _check_deleted(cluster, session)
            continue
        history = await stored_frames(cluster.clients[0], session.session_id)
        for other in cluster.clients[1:]:
            assert await stored_frames(other, session.session_id) == history
        try:
            _check_session(session, history)
        except AssertionError as error:
            log = "\n".join(f"{frame.id} {frame.event} {frame.raw.decode()}" for frame in history)
            raise AssertionError(
                f"{session.name} ({session.kind}), session {session.session_id}: {error}\n{log}"
            ) from error
        histories.append(history)
    for request in asked:
        assert not violation(request.body)
    _check_messages_were_read(sessions, asked)
    check_marks(histories, read_marks(marks))
    for client in cluster.clients:
        await _check_no_session_is_active(client)


def _check_session(session: UserSession, history: Sequence[SseFrame]) -> None:
    check_log(as_events(history))
    for reader in (session.reader, *session.further_readers):
        reader.check(history)
    frames = session.reader.frames
    assert not frames or frames[0].number <= 2, "the reader does not have the beginning"
    assert not history or session.reader.last_event_number == history[-1].number, "the reader does not have the end"
    stored = Counter(
        event["data"]["content"]
        for event in as_events(history)
        if event["event"] == "message" and event["data"]["role"] == "user"
    )
    for message in session.accepted:
        assert stored[message] == 1, f"{message!r} is stored {stored[message]} times"
        del stored[message]
    for message in session.uncertain:
        assert stored.pop(message, 0) <= 1
    assert not stored, f"nobody sent {stored}"


async def _check_deleted(cluster: Cluster, session: UserSession) -> None:
    for client in cluster.clients:
        assert (await client.http.get(f"/api/v1/sessions/{session.session_id}")).status_code == 404


def _check_messages_were_read(sessions: Sequence[UserSession], asked: Sequence[Asked]) -> None:
    """Check that the model read every accepted message, except in sessions that the user stops or deletes."""
    read = {
        (task_of(request), message["content"])
        for request in asked
        if request.kind == "planning"
        for message in request.messages
        if message["role"] == "user"
    }
    for session in sessions:
        if not session.endless:
            texts = "\n".join(text for name, text in read if name == session.name)
            for message in session.accepted:
                assert message in texts, f"the model never read {message!r}"


async def _check_no_session_is_active(client: ApiClient) -> None:
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": 100, "cursor": cursor} if cursor else {}
        page = (await client.http.get("/api/v1/sessions", params=params)).json()["data"]
        for session in page["sessions"]:
            assert session["status"] in ("completed", "pending"), session
        cursor = page.get("next_cursor")


def as_events(history: Sequence[SseFrame]) -> list[dict[str, Any]]:
    """Return a history in the form that `check_log` takes."""
    return [{"event": frame.event, "data": frame.data} for frame in history]


async def check_stores_are_clean(cluster: Cluster, session_ids: Sequence[str]) -> None:
    """Check that nobody holds a lease, that no stop request is open, and that every Redis key expires."""
    assert cluster.mongod is not None and cluster.redis is not None
    async with MongoStore(
        cluster.mongod.url, cluster.database, encode=encode_event, on_committed=lambda *_: None
    ) as store:
        async with asyncio.timeout(LEASE_SECONDS):
            for session_id in session_ids:
                # A worker releases its lease a moment after the last event; the lease of a dead one expires.
                lease = await eventually(
                    lambda session_id=session_id: store.leases.acquire(session_id, holder="the test", seconds=1),
                    interval=0.05,
                )
                assert lease is not None and lease.stop_up_to is None
                await store.leases.release(lease)
        assert not await store.leases.list_claimable(limit=10)
    for key in await cluster.redis.execute("KEYS", "*"):  # the counters of limits, which expire by themselves
        assert b":limits:" in key
        assert await cluster.redis.execute("TTL", key) != -1
