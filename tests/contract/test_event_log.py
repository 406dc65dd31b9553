"""Contract of the `EventLog` port, for the fake and for every store."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from app.domain.errors import InvalidInput, NotFound, StaleCheckpoint, Superseded
from app.domain.models.event import DoneEvent, Event, MessageEvent, TitleEvent, ToolCallingEvent, WaitEvent
from app.domain.models.message import (
    AssistantMessage,
    MaskRecord,
    Message,
    SummaryRecord,
    SystemMessage,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.models.tool import OpenCall
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.interfaces.wire import encode_event
from tests.contract.conftest import Harness
from tests.unit.golden.events_v1 import AT, EVENTS

MESSAGES: tuple[Message, ...] = (
    SystemMessage(content="s"),
    UserMessage(content="u ünï"),
    AssistantMessage(content="", tool_calls=(ToolCall(id="c", name="f", arguments='{"a": 1}'),)),
    ToolMessage(tool_call_id="c", content="r"),
)
CHECKPOINT = Checkpoint(
    phase="executing",
    last_read_message=3,
    plan=Plan(goal="g", steps=(Step(id="1", description="d", status="running", result="r"),)),
    open_calls=(OpenCall(id="c", toolkit="shell", function="f", args={"x": [1, {"y": None}]}),),
    pending_question="q",
    steps_started=4,
)


def says(content: str) -> MessageEvent:
    return MessageEvent(role="assistant", content=content)


async def fill(store: Harness, count: int) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, events=[says(str(n)) for n in range(1, count + 1)]))


async def test_commits_number_events_from_one_without_gaps(store: Harness) -> None:
    first = await store.event_log.commit("s", Commit(timestamp=AT, events=EVENTS))
    second = await store.event_log.commit("s", Commit(timestamp=AT, events=(DoneEvent(),)))
    assert [record.number for record in (*first, *second)] == list(range(1, len(EVENTS) + 2))


async def test_read_after_reopening_returns_the_encoded_events_byte_for_byte(store: Harness) -> None:
    stored = await store.event_log.commit("s", Commit(timestamp=AT, events=EVENTS))
    expected = [(event.type, encode_event(event, number, AT)) for number, event in enumerate(EVENTS, start=1)]
    assert [(record.type, record.data) for record in stored] == expected
    await store.close()
    await store.open()
    assert list(await store.event_log.read("s", after=0, limit=100)) == list(stored)


async def test_read_returns_at_most_limit_events_after_a_number(store: Harness) -> None:
    await fill(store, 10)
    assert [record.number for record in await store.event_log.read("s", after=3, limit=4)] == [4, 5, 6, 7]
    assert [record.number for record in await store.event_log.read("s", after=8, limit=4)] == [9, 10]
    assert list(await store.event_log.read("s", after=10, limit=4)) == []
    assert list(await store.event_log.read("s", after=10**15, limit=4)) == []


async def test_sessions_do_not_share_events_transcripts_or_checkpoints(store: Harness) -> None:
    await store.sessions.create("t", owner="me", at=100)
    await store.event_log.commit(
        "s", Commit(timestamp=1, events=(says("s"),), messages=(("executor", MESSAGES[0]),), checkpoint=CHECKPOINT)
    )
    await store.event_log.commit("t", Commit(timestamp=1, events=(says("t"),), messages=(("planner", MESSAGES[1]),)))
    assert [record.number for record in await store.event_log.read("t", after=0, limit=9)] == [1]
    assert list(await store.event_log.load_transcript("s", "planner")) == []
    assert list(await store.event_log.load_transcript("t", "planner")) == [MESSAGES[1]]
    assert await store.event_log.load_checkpoint("t") == Checkpoint()


async def test_transcripts_and_checkpoint_after_reopening_are_as_committed(store: Harness) -> None:
    assert await store.event_log.load_checkpoint("s") == Checkpoint()
    await store.event_log.commit(
        "s",
        Commit(
            timestamp=1,
            messages=[("planner", MESSAGES[0]), ("executor", MESSAGES[2])],
            checkpoint=Checkpoint(steps_started=1),
        ),
    )
    await store.event_log.commit(
        "s", Commit(timestamp=1, messages=[("executor", MESSAGES[3]), ("planner", MESSAGES[1])], checkpoint=CHECKPOINT)
    )
    await store.close()
    await store.open()
    await store.event_log.commit("s", Commit(timestamp=1, messages=[("planner", MESSAGES[2])]))
    assert list(await store.event_log.load_transcript("s", "planner")) == [MESSAGES[0], MESSAGES[1], MESSAGES[2]]
    assert list(await store.event_log.load_transcript("s", "executor")) == [MESSAGES[2], MESSAGES[3]]
    assert await store.event_log.load_checkpoint("s") == CHECKPOINT


async def test_transcript_is_loaded_after_a_position_with_its_records(store: Harness) -> None:
    entries = (MESSAGES[1], MaskRecord(before=3, images_only=True), SummaryRecord(), MESSAGES[3])
    checkpoint = Checkpoint(transcript_starts={"executor": 2})
    await store.event_log.commit(
        "s", Commit(timestamp=1, messages=[("executor", entry) for entry in entries], checkpoint=checkpoint)
    )
    for after in range(6):
        assert tuple(await store.event_log.load_transcript("s", "executor", after=after)) == entries[after:]
    assert await store.event_log.load_checkpoint("s") == checkpoint


def turn(revision: str, *, follows: str | None, **more: Any) -> Commit:
    """Return a commit with an event, a message, usage, and a checkpoint of `revision` that follows `follows`."""
    messages: tuple[tuple[TranscriptName, Message], ...] = (("executor", UserMessage(content=revision)),)
    run = Checkpoint(steps_started=len(revision), revision=revision)
    return Commit(
        timestamp=1,
        events=(says(revision),),
        messages=messages,
        checkpoint=run,
        usage=Usage(calls=1),
        expected_revision=follows,
        **more,
    )


async def test_repeated_commit_is_written_once_even_after_reopening(store: Harness) -> None:
    assert len(await store.event_log.commit("s", turn("a", follows=""))) == 1
    assert list(await store.event_log.commit("s", turn("a", follows=""))) == []
    await store.event_log.append_user_message("s", "in between", at=1, key=None)
    await store.event_log.commit("s", turn("b", follows="a", ends_after_message=2))
    await store.close()
    await store.open()
    await store.event_log.append_user_message("s", "later", at=1, key=None)
    # The newer message would refuse this commit if it were not stored already.
    assert list(await store.event_log.commit("s", turn("b", follows="a", ends_after_message=2))) == []
    assert [record.number for record in await store.event_log.read("s", after=0, limit=9)] == [1, 2, 3, 4]
    assert [message.content for message in await store.event_log.load_transcript("s", "executor")] == ["a", "b"]
    assert (await store.sessions.get("s", owner="me")).usage == Usage(calls=2)
    assert [len(records) for _, records in store.committed] == [1, 1, 1, 1]


async def test_commit_that_expects_another_revision_is_refused(store: Harness) -> None:
    await store.event_log.commit("s", turn("a", follows=""))
    await store.event_log.commit("s", turn("b", follows="a"))
    for stale in (turn("c", follows="a"), turn("a", follows=""), turn("d", follows=""), turn("e", follows="d")):
        with pytest.raises(StaleCheckpoint):
            await store.event_log.commit("s", stale)
    assert (await store.event_log.load_checkpoint("s")).revision == "b"
    assert len(await store.event_log.read("s", after=0, limit=9)) == 2
    assert len(await store.event_log.commit("s", turn("c", follows="b"))) == 1
    assert len(await store.event_log.commit("s", turn("d", follows=None))) == 1


async def test_concurrent_commits_that_expect_the_same_revision_write_one(store: Harness) -> None:
    commits = [turn(name, follows="") for name in "abcde"] * 2
    outcomes = await asyncio.gather(
        *(store.event_log.commit("s", commit) for commit in commits), return_exceptions=True
    )
    written = [outcome for outcome in outcomes if not isinstance(outcome, StaleCheckpoint)]
    assert sorted(len(cast("Sequence[object]", outcome)) for outcome in written) == [0, 1]
    assert len(await store.event_log.read("s", after=0, limit=9)) == 1


async def test_message_with_a_repeated_key_is_stored_once(store: Harness) -> None:
    assert await store.event_log.append_user_message("s", "a", at=1, key="k") == StoredMessage(number=1, is_new=True)
    assert await store.event_log.append_user_message("s", "b", at=1, key=None) == StoredMessage(number=2, is_new=True)
    await store.close()
    await store.open()
    assert await store.event_log.append_user_message("s", "a", at=1, key="k") == StoredMessage(number=1, is_new=False)
    await store.sessions.create("t", owner="me", at=100)
    assert await store.event_log.append_user_message("t", "a", at=1, key="k") == StoredMessage(number=1, is_new=True)
    assert [session for session, _ in store.committed] == ["s", "s", "t"]


async def test_unread_messages_are_the_user_messages_after_a_number(store: Harness) -> None:
    await store.event_log.append_user_message("s", "one", at=1, key=None)
    await fill(store, 2)
    await store.event_log.append_user_message("s", "two \ud83d", at=1, key=None)
    assert await store.event_log.unread_messages("s", after=0) == [
        UnreadMessage(number=1, content="one"),
        UnreadMessage(number=4, content="two \ufffd"),
    ]
    assert [message.number for message in await store.event_log.unread_messages("s", after=1)] == [4]
    assert list(await store.event_log.unread_messages("s", after=4)) == []


async def test_concurrent_messages_get_numbers_without_gaps(store: Harness) -> None:
    results = await asyncio.gather(
        *(store.event_log.append_user_message("s", str(n), at=1, key=str(n)) for n in range(50))
    )
    assert sorted(result.number for result in results) == list(range(1, 51))
    assert all(result.is_new for result in results)


async def test_concurrent_messages_with_the_same_key_are_stored_once(store: Harness) -> None:
    results = await asyncio.gather(
        *(store.event_log.append_user_message("s", "once", at=1, key="k") for _ in range(50))
    )
    assert {result.number for result in results} == {1}
    assert sum(result.is_new for result in results) == 1
    assert (await store.sessions.get("s", owner="me")).last_event_number == 1


async def test_ending_commit_is_refused_while_a_user_message_is_unread(store: Harness) -> None:
    await store.event_log.append_user_message("s", "one", at=1, key=None)
    await store.event_log.append_user_message("s", "two", at=1, key=None)
    ending = Commit(
        timestamp=1,
        events=(DoneEvent(),),
        messages=[("planner", MESSAGES[0])],
        checkpoint=CHECKPOINT,
        usage=Usage(calls=1),
        ends_after_message=1,
    )
    with pytest.raises(Superseded):
        await store.event_log.commit("s", ending)
    assert (await store.sessions.get("s", owner="me")).last_event_number == 2
    assert list(await store.event_log.load_transcript("s", "planner")) == []
    assert await store.event_log.load_checkpoint("s") == Checkpoint(title="one")
    assert (await store.sessions.get("s", owner="me")).usage == Usage()
    ends = Commit(timestamp=1, events=(DoneEvent(),), ends_after_message=2)
    assert [record.number for record in await store.event_log.commit("s", ends)] == [3]


async def test_refused_commits_do_not_affect_concurrent_commits(store: Harness) -> None:
    await store.event_log.append_user_message("s", "one", at=1, key=None)
    results = await asyncio.gather(
        store.event_log.commit("s", Commit(timestamp=1, events=(says("a"),))),
        store.event_log.commit("nobody", Commit(timestamp=1, events=(says("b"),))),
        store.event_log.commit("s", Commit(timestamp=1, events=(DoneEvent(),), ends_after_message=0)),
        store.event_log.commit("s", Commit(timestamp=-1, events=(says("x"),))),
        store.event_log.commit("s", Commit(timestamp=2**80, events=(says("x"),))),
        store.event_log.commit("s", Commit(timestamp=1, events=(says("c"),))),
        return_exceptions=True,
    )
    kinds = [type(result) if isinstance(result, BaseException) else "stored" for result in results]
    assert kinds == ["stored", NotFound, Superseded, InvalidInput, InvalidInput, "stored"]
    assert [record.number for record in await store.event_log.read("s", after=0, limit=9)] == [1, 2, 3]


async def test_on_committed_is_called_for_every_event_in_order_before_the_caller_continues(store: Harness) -> None:
    announced_before_return: list[bool] = []

    async def call(n: int) -> None:
        records = await store.event_log.commit("s", Commit(timestamp=n, events=(says(str(n)), says("again"))))
        announced_before_return.append(("s", records) in store.committed)

    await asyncio.gather(*(call(n) for n in range(30)))
    await store.event_log.commit("s", Commit(timestamp=1, messages=[("planner", MESSAGES[0])]))
    numbers = [record.number for _, records in store.committed for record in records]
    assert numbers == list(range(1, 61))
    assert all(announced_before_return)
    assert all(records for _, records in store.committed)


async def test_cancelling_the_caller_does_not_undo_the_write(store: Harness) -> None:
    task = asyncio.create_task(store.event_log.append_user_message("s", "stays", at=1, key=None))
    await asyncio.sleep(0)  # one iteration of the event loop queues the write
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.event_log.commit("s", Commit(timestamp=1, events=(WaitEvent(),)))
    assert [record.type for record in await store.event_log.read("s", after=0, limit=9)] == ["message", "wait"]
    assert [records[0].type for _, records in store.committed] == ["message", "wait"]


async def test_every_method_raises_not_found_for_a_missing_session(store: Harness) -> None:
    event_log = store.event_log
    for call in (
        event_log.commit("no", Commit(timestamp=1)),
        event_log.append_user_message("no", "x", at=1, key=None),
        event_log.read("no", after=0, limit=1),
        event_log.unread_messages("no", after=0),
        event_log.load_checkpoint("no"),
        event_log.load_transcript("no", "planner"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_lone_surrogates_and_large_integers_are_stored(store: Harness) -> None:
    call = OpenCall(id="c", toolkit="shell", function="f", args={"a": "\ud800 \ud83d\ude00", "n": 2**70, "x": [{}]})
    events: list[Event] = [ToolCallingEvent.of(call), TitleEvent(title="t\udc00"), says("m\ud800")]
    records = await store.event_log.commit(
        "s", Commit(timestamp=1, events=events, messages=[("executor", ToolMessage(tool_call_id="c", content="é"))])
    )
    await store.event_log.commit("s", Commit(timestamp=1, checkpoint=Checkpoint(open_calls=(call,), steps_started=7)))
    assert list(await store.event_log.read("s", after=0, limit=9)) == list(records)
    assert (await store.event_log.load_checkpoint("s")).steps_started == 7
    session = await store.sessions.get("s", owner="me")
    assert (session.title, session.latest_message) == ("t\ufffd", "m\ufffd")


async def test_usage_is_the_sum_of_all_commits(store: Harness) -> None:
    assert (await store.sessions.get("s", owner="me")).usage == Usage()
    for cost in (None, 0.25, None, 0.5):
        usage = Usage(prompt_tokens=10, cached_tokens=5, completion_tokens=2, reasoning_tokens=1, calls=1, cost=cost)
        await store.event_log.commit("s", Commit(timestamp=1, usage=usage))
    await store.close()
    await store.open()
    expected = Usage(prompt_tokens=40, cached_tokens=20, completion_tokens=8, reasoning_tokens=4, calls=4, cost=0.75)
    assert (await store.sessions.get("s", owner="me")).usage == expected


def test_golden_files_exist_where_tests_expect_them() -> None:
    golden = Path(__file__).parents[1] / "unit" / "golden"
    assert {path.name for path in golden.iterdir()} >= {"events_v1.jsonl", "store_v1.sql"}


async def test_cost_stays_unknown_until_a_price_is_known(store: Harness) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, usage=Usage(calls=1)))
    assert (await store.sessions.get("s", owner="me")).usage.cost is None
    await store.event_log.commit("s", Commit(timestamp=1, usage=Usage(calls=1, cost=0.0)))
    assert (await store.sessions.get("s", owner="me")).usage.cost == 0.0


async def test_message_with_a_model_changes_the_model_of_the_session(store: Harness) -> None:
    await store.event_log.append_user_message("s", "a", at=1, key="k", model="fast")
    assert (await store.sessions.get("s", owner="me")).model == "fast"
    await store.event_log.append_user_message("s", "b", at=1, key=None)
    await store.event_log.append_user_message("s", "a", at=1, key="k", model="other")
    assert (await store.sessions.get("s", owner="me")).model == "fast"


async def test_checkpoint_is_loaded_with_the_newest_model_of_the_session(store: Harness) -> None:
    await store.event_log.append_user_message("s", "a", at=1, key=None, model="fast")
    assert await store.event_log.load_checkpoint("s") == Checkpoint(model="fast", title="a")
    await store.event_log.commit("s", Commit(timestamp=1, checkpoint=Checkpoint(steps_started=7, model="fast")))
    await store.event_log.append_user_message("s", "b", at=1, key=None, model="slow")
    assert await store.event_log.load_checkpoint("s") == Checkpoint(steps_started=7, model="slow", title="a")


async def test_read_with_maximum_bytes_ends_with_the_event_that_reaches_them(store: Harness) -> None:
    events = [MessageEvent(role="assistant", content="x" * 1000) for _ in range(5)]
    size = len((await store.event_log.commit("s", Commit(timestamp=1, events=events)))[0].data)

    async def numbers(max_bytes: int) -> list[int]:
        records = await store.event_log.read("s", after=1, limit=3, max_bytes=max_bytes)
        return [record.number for record in records]

    assert await numbers(1) == [2]
    assert await numbers(size) == [2]
    assert await numbers(size + 1) == [2, 3]
    assert await numbers(100 * size) == [2, 3, 4]


async def use(store: Harness, tokens: int, *, day: int, session_id: str = "s") -> None:
    usage = Usage(prompt_tokens=tokens - 1, completion_tokens=1, calls=1)
    await store.event_log.commit(session_id, Commit(timestamp=day * 86_400 + 5, usage=usage))


async def test_tokens_of_owner_are_those_of_all_sessions_on_the_newest_day(store: Harness) -> None:
    await store.sessions.create("t", owner="me", at=1)
    await store.sessions.create("other", owner="other", at=1)
    assert await store.event_log.tokens_of_owner("s", day=10) == 0
    await use(store, 100, day=10)
    await use(store, 20, day=10, session_id="t")
    await use(store, 3, day=10, session_id="other")
    assert await store.event_log.tokens_of_owner("s", day=10) == 120
    assert await store.event_log.tokens_of_owner("other", day=10) == 3
    assert await store.event_log.tokens_of_owner("s", day=11) == 0
    await use(store, 7, day=11)
    assert await store.event_log.tokens_of_owner("t", day=11) == 7
    await use(store, 1, day=10)  # a commit that was retried over midnight
    assert await store.event_log.tokens_of_owner("s", day=11) == 8


async def test_tokens_of_owner_outlive_the_session_and_a_restart(store: Harness) -> None:
    await store.sessions.create("t", owner="me", at=1)
    await use(store, 100, day=10, session_id="t")
    await store.sessions.delete("t", owner="me")
    await store.close()
    await store.open()
    assert await store.event_log.tokens_of_owner("s", day=10) == 100


async def test_find_message_returns_the_number_of_the_message_with_the_key(store: Harness) -> None:
    await store.event_log.append_user_message("s", "a", at=1, key="first")
    await store.event_log.append_user_message("s", "b", at=1, key="second")
    found = [await store.event_log.find_message("s", key) for key in ("first", "second", "third")]
    assert found == [1, 2, None]
    await store.sessions.create("t", owner="me", at=1)
    assert await store.event_log.find_message("t", "first") is None
