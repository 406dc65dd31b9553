"""The `EventLog` port, on the fake and on every store."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from app.domain.errors import InvalidInput, NotFound, StaleCheckpoint, Superseded
from app.domain.models.event import DoneEvent, Event, MessageEvent, TitleEvent, ToolCallingEvent, WaitEvent
from app.domain.models.message import (
    AssistantMessage,
    Message,
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

SAID: tuple[Message, ...] = (
    SystemMessage(content="s"),
    UserMessage(content="u ünï"),
    AssistantMessage(content="", tool_calls=(ToolCall(id="c", name="f", arguments='{"a": 1}'),)),
    ToolMessage(tool_call_id="c", content="r"),
)
STATE = Checkpoint(
    phase="executing",
    last_read_message=3,
    plan=Plan(goal="g", steps=(Step(id="1", description="d", status="running", result="r"),)),
    open_calls=(OpenCall(id="c", toolkit="shell", function="f", args={"x": [1, {"y": None}]}),),
    pending_question="q",
    model_turns=4,
)


def says(content: str) -> MessageEvent:
    return MessageEvent(role="assistant", content=content)


async def fill(store: Harness, count: int) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, events=[says(str(n)) for n in range(1, count + 1)]))


async def test_a_commit_numbers_its_events_from_one_without_gaps(store: Harness) -> None:
    first = await store.event_log.commit("s", Commit(timestamp=AT, events=EVENTS))
    second = await store.event_log.commit("s", Commit(timestamp=AT, events=(DoneEvent(),)))
    assert [record.number for record in (*first, *second)] == list(range(1, len(EVENTS) + 2))


async def test_what_is_read_is_what_the_encoder_made_byte_for_byte_even_after_a_restart(store: Harness) -> None:
    stored = await store.event_log.commit("s", Commit(timestamp=AT, events=EVENTS))
    expected = [(event.type, encode_event(event, number, AT)) for number, event in enumerate(EVENTS, start=1)]
    assert [(record.type, record.data) for record in stored] == expected
    await store.close()
    await store.open()
    assert list(await store.event_log.read("s", after=0, limit=100)) == list(stored)


async def test_a_page_holds_at_most_its_limit_of_what_comes_after_a_number(store: Harness) -> None:
    await fill(store, 10)
    assert [record.number for record in await store.event_log.read("s", after=3, limit=4)] == [4, 5, 6, 7]
    assert [record.number for record in await store.event_log.read("s", after=8, limit=4)] == [9, 10]
    assert list(await store.event_log.read("s", after=10, limit=4)) == []
    assert list(await store.event_log.read("s", after=10**15, limit=4)) == []


async def test_sessions_do_not_see_each_others_rows(store: Harness) -> None:
    await store.sessions.create("t", owner="me", at=100)
    await store.event_log.commit(
        "s", Commit(timestamp=1, events=(says("s"),), messages=(("executor", SAID[0]),), checkpoint=STATE)
    )
    await store.event_log.commit("t", Commit(timestamp=1, events=(says("t"),), messages=(("planner", SAID[1]),)))
    assert [record.number for record in await store.event_log.read("t", after=0, limit=9)] == [1]
    assert list(await store.event_log.load_transcript("s", "planner")) == []
    assert list(await store.event_log.load_transcript("t", "planner")) == [SAID[1]]
    assert await store.event_log.load_checkpoint("t") == Checkpoint()


async def test_transcripts_and_run_state_come_back_as_they_were_said_even_after_a_restart(store: Harness) -> None:
    assert await store.event_log.load_checkpoint("s") == Checkpoint()
    await store.event_log.commit(
        "s",
        Commit(
            timestamp=1, messages=[("planner", SAID[0]), ("executor", SAID[2])], checkpoint=Checkpoint(model_turns=1)
        ),
    )
    await store.event_log.commit(
        "s", Commit(timestamp=1, messages=[("executor", SAID[3]), ("planner", SAID[1])], checkpoint=STATE)
    )
    await store.close()
    await store.open()
    await store.event_log.commit("s", Commit(timestamp=1, messages=[("planner", SAID[2])]))
    assert list(await store.event_log.load_transcript("s", "planner")) == [SAID[0], SAID[1], SAID[2]]
    assert list(await store.event_log.load_transcript("s", "executor")) == [SAID[2], SAID[3]]
    assert await store.event_log.load_checkpoint("s") == STATE


def turn(revision: str, *, follows: str | None, **more: Any) -> Commit:
    """A change of a run: an event, a message, what it cost, and the checkpoint `revision`."""
    said: tuple[tuple[TranscriptName, Message], ...] = (("executor", UserMessage(content=revision)),)
    run = Checkpoint(model_turns=len(revision), revision=revision)
    return Commit(
        timestamp=1,
        events=(says(revision),),
        messages=said,
        checkpoint=run,
        usage=Usage(calls=1),
        expected_revision=follows,
        **more,
    )


async def test_a_change_that_is_repeated_is_written_once_even_after_a_restart(store: Harness) -> None:
    assert len(await store.event_log.commit("s", turn("a", follows=""))) == 1
    assert list(await store.event_log.commit("s", turn("a", follows=""))) == []
    await store.event_log.append_user_message("s", "in between", at=1, key=None)
    await store.event_log.commit("s", turn("b", follows="a", ends_after_message=2))
    await store.close()
    await store.open()
    await store.event_log.append_user_message("s", "later", at=1, key=None)
    # Had it not been written before, the newer message would forbid it.
    assert list(await store.event_log.commit("s", turn("b", follows="a", ends_after_message=2))) == []
    assert [record.number for record in await store.event_log.read("s", after=0, limit=9)] == [1, 2, 3, 4]
    assert [said.content for said in await store.event_log.load_transcript("s", "executor")] == ["a", "b"]
    assert await store.sessions.usage("s") == Usage(calls=2)
    assert [len(records) for _, records in store.committed] == [1, 1, 1, 1]


async def test_a_change_that_follows_another_checkpoint_than_the_stored_one_is_refused(store: Harness) -> None:
    await store.event_log.commit("s", turn("a", follows=""))
    await store.event_log.commit("s", turn("b", follows="a"))
    for stale in (turn("c", follows="a"), turn("a", follows=""), turn("d", follows=""), turn("e", follows="d")):
        with pytest.raises(StaleCheckpoint):
            await store.event_log.commit("s", stale)
    assert (await store.event_log.load_checkpoint("s")).revision == "b"
    assert len(await store.event_log.read("s", after=0, limit=9)) == 2
    assert len(await store.event_log.commit("s", turn("c", follows="b"))) == 1
    assert len(await store.event_log.commit("s", turn("d", follows=None))) == 1


async def test_of_two_changes_that_follow_the_same_checkpoint_at_once_one_is_written(store: Harness) -> None:
    changes = [turn(name, follows="") for name in "abcde"] * 2
    outcomes = await asyncio.gather(
        *(store.event_log.commit("s", change) for change in changes), return_exceptions=True
    )
    written = [outcome for outcome in outcomes if not isinstance(outcome, StaleCheckpoint)]
    assert sorted(len(cast("Sequence[object]", outcome)) for outcome in written) == [0, 1]
    assert len(await store.event_log.read("s", after=0, limit=9)) == 1


async def test_a_receipt_tells_the_number_and_the_same_key_is_the_same_message(store: Harness) -> None:
    assert await store.event_log.append_user_message("s", "a", at=1, key="k") == StoredMessage(number=1, is_new=True)
    assert await store.event_log.append_user_message("s", "b", at=1, key=None) == StoredMessage(number=2, is_new=True)
    await store.close()
    await store.open()
    assert await store.event_log.append_user_message("s", "a", at=1, key="k") == StoredMessage(number=1, is_new=False)
    await store.sessions.create("t", owner="me", at=100)
    assert await store.event_log.append_user_message("t", "a", at=1, key="k") == StoredMessage(number=1, is_new=True)
    assert [session for session, _ in store.committed] == ["s", "s", "t"]


async def test_unread_words_are_the_users_messages_after_a_number(store: Harness) -> None:
    await store.event_log.append_user_message("s", "one", at=1, key=None)
    await fill(store, 2)
    await store.event_log.append_user_message("s", "two \ud83d", at=1, key=None)
    assert await store.event_log.unread_messages("s", after=0) == [
        UnreadMessage(number=1, content="one"),
        UnreadMessage(number=4, content="two \ufffd"),
    ]
    assert [words.number for words in await store.event_log.unread_messages("s", after=1)] == [4]
    assert list(await store.event_log.unread_messages("s", after=4)) == []


async def test_fifty_messages_at_once_get_fifty_numbers_without_a_gap(store: Harness) -> None:
    receipts = await asyncio.gather(
        *(store.event_log.append_user_message("s", str(n), at=1, key=str(n)) for n in range(50))
    )
    assert sorted(receipt.number for receipt in receipts) == list(range(1, 51))
    assert all(receipt.is_new for receipt in receipts)


async def test_the_same_key_fifty_times_at_once_is_one_message(store: Harness) -> None:
    receipts = await asyncio.gather(
        *(store.event_log.append_user_message("s", "once", at=1, key="k") for _ in range(50))
    )
    assert {receipt.number for receipt in receipts} == {1}
    assert sum(receipt.is_new for receipt in receipts) == 1
    assert (await store.sessions.get("s", owner="me")).last_event_number == 1


async def test_a_run_may_not_end_over_words_that_it_has_not_read(store: Harness) -> None:
    await store.event_log.append_user_message("s", "one", at=1, key=None)
    await store.event_log.append_user_message("s", "two", at=1, key=None)
    ending = Commit(
        timestamp=1,
        events=(DoneEvent(),),
        messages=[("planner", SAID[0])],
        checkpoint=STATE,
        usage=Usage(calls=1),
        ends_after_message=1,
    )
    with pytest.raises(Superseded):
        await store.event_log.commit("s", ending)
    assert (await store.sessions.get("s", owner="me")).last_event_number == 2
    assert list(await store.event_log.load_transcript("s", "planner")) == []
    assert await store.event_log.load_checkpoint("s") == Checkpoint()
    assert await store.sessions.usage("s") == Usage()
    ends = Commit(timestamp=1, events=(DoneEvent(),), ends_after_message=2)
    assert [record.number for record in await store.event_log.commit("s", ends)] == [3]


async def test_one_refused_change_does_not_disturb_others_of_the_same_moment(store: Harness) -> None:
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


async def test_followers_hear_of_every_stored_event_in_order_before_the_caller_goes_on(store: Harness) -> None:
    heard_by_caller: list[bool] = []

    async def call(n: int) -> None:
        records = await store.event_log.commit("s", Commit(timestamp=n, events=(says(str(n)), says("again"))))
        heard_by_caller.append(("s", records) in store.committed)

    await asyncio.gather(*(call(n) for n in range(30)))
    await store.event_log.commit("s", Commit(timestamp=1, messages=[("planner", SAID[0])]))
    numbers = [record.number for _, records in store.committed for record in records]
    assert numbers == list(range(1, 61))
    assert all(heard_by_caller)
    assert all(records for _, records in store.committed)


async def test_a_cancelled_caller_does_not_undo_the_write(store: Harness) -> None:
    task = asyncio.create_task(store.event_log.append_user_message("s", "stays", at=1, key=None))
    await asyncio.sleep(0)  # one turn of the loop: the write is on its way
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.event_log.commit("s", Commit(timestamp=1, events=(WaitEvent(),)))
    assert [record.type for record in await store.event_log.read("s", after=0, limit=9)] == ["message", "wait"]
    assert [records[0].type for _, records in store.committed] == ["message", "wait"]


async def test_nothing_is_found_of_a_session_that_does_not_exist(store: Harness) -> None:
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


async def test_what_a_model_sends_at_its_worst_is_stored_and_read_back(store: Harness) -> None:
    call = OpenCall(id="c", toolkit="shell", function="f", args={"a": "\ud800 \ud83d\ude00", "n": 2**70, "x": [{}]})
    events: list[Event] = [ToolCallingEvent.of(call), TitleEvent(title="t\udc00"), says("m\ud800")]
    records = await store.event_log.commit(
        "s", Commit(timestamp=1, events=events, messages=[("executor", ToolMessage(tool_call_id="c", content="é"))])
    )
    await store.event_log.commit("s", Commit(timestamp=1, checkpoint=Checkpoint(open_calls=(call,), model_turns=7)))
    assert list(await store.event_log.read("s", after=0, limit=9)) == list(records)
    assert (await store.event_log.load_checkpoint("s")).model_turns == 7
    session = await store.sessions.get("s", owner="me")
    assert (session.title, session.latest_message) == ("t\ufffd", "m\ufffd")


async def test_usage_adds_up(store: Harness) -> None:
    assert await store.sessions.usage("s") == Usage()
    for _ in range(3):
        usage = Usage(prompt_tokens=10, cached_tokens=5, completion_tokens=2, calls=1)
        await store.event_log.commit("s", Commit(timestamp=1, usage=usage))
    await store.close()
    await store.open()
    expected = Usage(prompt_tokens=30, cached_tokens=15, completion_tokens=6, calls=3)
    assert await store.sessions.usage("s") == expected


def test_the_golden_files_are_where_the_tests_look() -> None:
    golden = Path(__file__).parents[1] / "unit" / "golden"
    assert {path.name for path in golden.iterdir()} >= {"events_v1.jsonl", "store_v1.sql"}
