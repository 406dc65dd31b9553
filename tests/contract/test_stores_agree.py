"""The fake and the real stores give the same results for random operations."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.errors import AnkerError
from app.domain.models.event import DoneEvent, MessageEvent, TitleEvent, WaitEvent
from app.domain.models.message import Usage, UserMessage
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from tests.contract.conftest import Harness, MemoryHarness, MongoHarness, SqliteHarness
from tests.support.stores import Mongod

SESSIONS = ("a", "b", "c")
OWNERS = ("me", "you")

events = st.lists(
    st.one_of(
        st.builds(MessageEvent, role=st.sampled_from(["user", "assistant"]), content=st.text(max_size=5)),
        st.builds(TitleEvent, title=st.text(max_size=5)),
        st.builds(WaitEvent),
        st.builds(DoneEvent),
    ),
    max_size=4,
)
times = st.integers(1, 5)
ids = st.sampled_from(SESSIONS)
numbers = st.integers(-1, 12)
commits = st.tuples(st.just("commit"), ids, events, times, st.none() | numbers, st.integers(0, 2))
models = st.none() | st.sampled_from(("", "fast"))
receives = st.tuples(st.just("receive"), ids, st.text(max_size=5), times, st.none() | st.sampled_from("xyz"), models)
marks = st.tuples(st.just("mark"), ids, numbers)
renames = st.tuples(st.just("rename"), ids, st.text(min_size=1, max_size=5), times)
pins = st.tuples(st.just("pin"), ids, st.sampled_from(OWNERS), st.booleans())
creates = st.tuples(st.just("create"), ids, st.sampled_from(OWNERS), times)
deletes = st.tuples(st.just("delete"), ids, st.sampled_from(OWNERS))
reopens = st.tuples(st.just("reopen"))
steps = st.lists(
    st.one_of(commits, commits, receives, receives, marks, renames, pins, creates, deletes, reopens), max_size=25
)


async def run_step(store: Harness, step: tuple[object, ...]) -> object:
    match step:
        case ("commit", str(session), list(batch), int(at), ends_after, int(turns)):
            messages = [("planner", UserMessage(content=str(turns)))] * turns
            change = Commit(
                timestamp=at,
                events=batch,
                messages=messages,  # type: ignore[arg-type]
                checkpoint=Checkpoint(steps_started=turns) if turns else None,
                usage=Usage(calls=turns, reasoning_tokens=7, cost=turns / 4 if turns > 1 else None) if turns else None,
                ends_after_message=ends_after,  # type: ignore[arg-type]
            )
            return list(await store.event_log.commit(session, change))
        case ("receive", str(session), str(content), int(at), key, model):
            options = {"key": key, "model": model}
            return await store.event_log.append_user_message(session, content, at=at, **options)  # type: ignore[arg-type]
        case ("mark", str(session), int(number)):
            return await store.sessions.mark_delivered(session, number=number)
        case ("rename", str(session), str(title), int(at)):
            return await store.event_log.rename_session(session, title, at=at)
        case ("pin", str(session), str(owner), bool(is_pinned)):
            return await store.sessions.set_pinned(session, owner=owner, is_pinned=is_pinned)
        case ("create", str(session), str(owner), int(at)):
            return await store.sessions.create(session, owner=owner, at=at)
        case ("delete", str(session), str(owner)):
            return await store.sessions.delete(session, owner=owner)
        case _:
            await store.close()
            return await store.open()


async def outcome(call: object) -> object:
    try:
        return await call  # type: ignore[misc]
    except AnkerError as error:
        return type(error), str(error)


async def observed(store: Harness) -> list[object]:
    event_log, sessions = store.event_log, store.sessions
    seen: list[object] = [list(await sessions.list_active())]
    for owner in OWNERS:
        first = await sessions.page(owner=owner, limit=2, cursor=None)
        # A cursor is opaque: MongoDB also counts the sessions that it refuses to create.
        seen.append((first.sessions, first.next_cursor is None))
        if first.next_cursor:
            seen.append(await sessions.page(owner=owner, limit=2, cursor=first.next_cursor))
    for session in SESSIONS:
        for call in (
            event_log.read(session, after=2, limit=5),
            event_log.unread_messages(session, after=1),
            event_log.load_transcript(session, "planner"),
        ):
            found = await outcome(call)
            seen.append(found if isinstance(found, tuple) else list(found))  # type: ignore[call-overload]
        seen.append(await outcome(event_log.load_checkpoint(session)))
    return seen


def assert_same_results(
    batches: list[list[tuple[object, ...]]], *, together: bool, mongod: Mongod | None = None
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            real = SqliteHarness(Path(folder)) if mongod is None else MongoHarness(mongod, "pymongo")
            stores: list[Harness] = [MemoryHarness(), real]
            observations: list[list[object]] = []
            for store in stores:
                await store.open()
                try:
                    results: list[object] = [await outcome(run_step(store, ("create", "a", "me", 1)))]
                    for batch in batches:
                        if together:
                            results.append(await asyncio.gather(*(outcome(run_step(store, step)) for step in batch)))
                        else:
                            results.append([await outcome(run_step(store, step)) for step in batch])
                    results += [await observed(store), store.committed]
                finally:
                    await store.close()
                    if isinstance(store, MongoHarness):
                        store.mongod.drop(store.database)
                observations.append(results)
            assert observations[0] == observations[1]

    asyncio.run(run())


many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(many, max_examples=10)
"""Fewer examples for MongoDB, because creating and dropping a database takes longer than creating a file."""

alone = st.one_of(commits, receives, marks, renames, pins, creates, deletes).map(lambda step: (step[0], "a", *step[2:]))
"""Operations on one session. MongoDB queues the writes of each session, so writes to different ones have no order."""


@many
@given(steps)
def test_sqlite_and_fake_agree_on_sequential_operations(operations: list[tuple[object, ...]]) -> None:
    assert_same_results([[step] for step in operations], together=False)


@many
@given(st.lists(st.lists(st.one_of(commits, receives, marks, creates, deletes), max_size=12), max_size=3))
def test_sqlite_and_fake_agree_on_concurrent_operations(batches: list[list[tuple[object, ...]]]) -> None:
    assert_same_results(batches, together=True)


@few
@given(steps)
def test_mongodb_and_fake_agree_on_sequential_operations(mongod: Mongod, operations: list[tuple[object, ...]]) -> None:
    assert_same_results([[step] for step in operations], together=False, mongod=mongod)


@few
@given(st.lists(st.lists(alone, max_size=12), max_size=3))
def test_mongodb_and_fake_agree_on_concurrent_operations_on_one_session(
    mongod: Mongod, batches: list[list[tuple[object, ...]]]
) -> None:
    assert_same_results(batches, together=True, mongod=mongod)
