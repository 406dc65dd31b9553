"""Contract of the `SessionRepository` port, for the fake and for every store."""

import asyncio

import pytest

from app.domain.errors import Conflict, InvalidInput, NotFound
from app.domain.models.event import DoneEvent, ErrorEvent, Event, MessageEvent, StepEvent, TitleEvent, WaitEvent
from app.domain.models.run import Checkpoint
from app.domain.models.session import Session
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.session_summary import PREVIEW_CHARS
from tests.contract.conftest import Harness


def says(content: str) -> MessageEvent:
    return MessageEvent(role="assistant", content=content)


async def listed(store: Harness, *, owner: str = "me", limit: int = 100) -> list[str]:
    return [session.id for session in (await store.sessions.page(owner=owner, limit=limit, cursor=None)).sessions]


async def unread(store: Harness, session_id: str = "s") -> int:
    return (await store.sessions.get(session_id, owner="me")).unread_count


async def test_new_session_is_pending_and_empty(store: Harness) -> None:
    assert await store.sessions.get("s", owner="me") == Session(
        id="s",
        owner="me",
        title="",
        status="pending",
        latest_message="",
        latest_message_at=None,
        unread_count=0,
        created_at=100,
        last_event_number=0,
    )


async def test_create_with_an_existing_id_raises_conflict(store: Harness) -> None:
    with pytest.raises(Conflict):
        await store.sessions.create("s", owner="other", at=1)


async def test_session_of_another_owner_is_not_found(store: Harness) -> None:
    with pytest.raises(NotFound):
        await store.sessions.get("s", owner="other")
    with pytest.raises(NotFound):
        await store.sessions.delete("s", owner="other")
    assert await listed(store, owner="other") == []
    assert await listed(store) == ["s"]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([MessageEvent(role="user", content="u")], "running"),
        ([MessageEvent(role="user", content="u"), WaitEvent()], "waiting"),
        ([MessageEvent(role="user", content="u"), DoneEvent()], "completed"),
        ([ErrorEvent(error="e")], "completed"),
        ([DoneEvent(), MessageEvent(role="user", content="u")], "running"),
        ([TitleEvent(title="t"), StepEvent(id="1", description="d", status="running")], "pending"),
    ],
)
async def test_events_change_the_status(store: Harness, events: list[Event], status: str) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, events=events))
    assert (await store.sessions.get("s", owner="me")).status == status
    assert list(await store.sessions.list_active()) == (["s"] if status == "running" else [])


async def test_summary_after_reopening_reflects_the_events(store: Harness) -> None:
    await store.event_log.append_user_message("s", "hello", at=150, key=None)
    await store.event_log.commit(
        "s", Commit(timestamp=160, events=(TitleEvent(title="T"), says("first"), says("x" * 5000)))
    )
    await store.event_log.commit(
        "s", Commit(timestamp=170, events=(StepEvent(id="1", description="d", status="running"),))
    )
    await store.close()
    await store.open()
    session = await store.sessions.get("s", owner="me")
    assert (session.title, session.status, session.last_event_number, session.unread_count) == ("T", "running", 5, 2)
    assert (session.latest_message, session.latest_message_at) == ("x" * PREVIEW_CHARS, 160)
    assert (await store.sessions.page(owner="me", limit=1, cursor=None)).sessions == (session,)


async def test_page_is_ordered_by_activity_then_by_creation(store: Harness) -> None:
    for name in ("a", "b", "c"):
        await store.sessions.create(name, owner="me", at=100)
    assert await listed(store) == ["c", "b", "a", "s"]
    await store.event_log.append_user_message("a", "x", at=101, key=None)
    await store.event_log.append_user_message("s", "x", at=101, key=None)
    assert await listed(store) == ["a", "s", "c", "b"]
    await store.event_log.commit("b", Commit(timestamp=500, events=(TitleEvent(title="no message"),)))
    assert await listed(store) == ["a", "s", "c", "b"]


async def test_pages_contain_every_session_once(store: Harness) -> None:
    for n in range(10):
        await store.sessions.create(f"x{n}", owner="me", at=100 + n // 4)
    await store.sessions.create("foreign", owner="other", at=100)
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.sessions.page(owner="me", limit=4, cursor=cursor)
        found.extend(session.id for session in page.sessions)
        if (cursor := page.next_cursor) is None:
            break
    assert found == await listed(store)
    assert len(found) == 11


async def test_full_page_without_more_sessions_has_no_next_cursor(store: Harness) -> None:
    assert (await store.sessions.page(owner="me", limit=1, cursor=None)).next_cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1-2", "1-2-3", "1-2\n", "٣-1", "9" * 40 + "-1", "'; --"])
async def test_invalid_cursor_is_refused(store: Harness, cursor: str) -> None:
    with pytest.raises(InvalidInput):
        await store.sessions.page(owner="me", limit=10, cursor=cursor)


async def test_unread_count_is_the_number_of_undelivered_assistant_messages(store: Harness) -> None:
    await store.event_log.append_user_message("s", "u", at=1, key=None)
    await store.event_log.commit(
        "s", Commit(timestamp=1, events=(says("2"), TitleEvent(title="3"), says("4"), says("5")))
    )
    assert await unread(store) == 3
    assert await store.sessions.mark_delivered("s", number=4) is True
    assert await unread(store) == 1
    assert await store.sessions.mark_delivered("s", number=2) is False
    assert await store.sessions.mark_delivered("s", number=4) is False
    assert await unread(store) == 1
    await store.close()
    await store.open()
    assert await store.sessions.mark_delivered("s", number=5) is True
    assert await unread(store) == 0


async def test_mark_beyond_the_newest_event_does_not_cover_later_events(store: Harness) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, events=(says("1"),)))
    assert await store.sessions.mark_delivered("s", number=10**15) is True
    await store.event_log.commit("s", Commit(timestamp=1, events=(says("2"),)))
    assert await unread(store) == 1


async def test_mark_over_events_without_messages_changes_nothing(store: Harness) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, events=(TitleEvent(title="t"), says("2"))))
    assert await store.sessions.mark_delivered("s", number=1) is False
    assert await unread(store) == 1


async def test_deleted_session_is_gone_and_its_id_can_be_created_again(store: Harness) -> None:
    await store.event_log.append_user_message("s", "u", at=1, key="k")
    await store.sessions.delete("s", owner="me")
    for call in (
        store.sessions.delete("s", owner="me"),
        store.sessions.get("s", owner="me"),
        store.sessions.mark_delivered("s", number=1),
        store.event_log.commit("s", Commit(timestamp=1, events=(says("late"),))),
        store.event_log.read("s", after=0, limit=1),
    ):
        with pytest.raises(NotFound):
            await call
    assert await listed(store) == []
    assert list(await store.sessions.list_active()) == []
    await store.sessions.create("s", owner="me", at=1)
    assert (await store.event_log.append_user_message("s", "u", at=1, key="k")).is_new
    assert [record.number for record in await store.event_log.read("s", after=0, limit=9)] == [1]


async def test_writes_queued_before_a_delete_succeed_and_writes_after_it_fail(store: Harness) -> None:
    results = await asyncio.gather(
        *(store.event_log.append_user_message("s", "before", at=1, key=None) for _ in range(3)),
        store.sessions.delete("s", owner="me"),
        *(store.event_log.append_user_message("s", "after", at=1, key=None) for _ in range(3)),
        return_exceptions=True,
    )
    assert all(isinstance(result, NotFound) for result in results[4:])
    assert not any(isinstance(result, BaseException) for result in results[:4])
    with pytest.raises(NotFound):
        await store.event_log.read("s", after=0, limit=1)


async def test_check_of_an_available_store_returns_none(store: Harness) -> None:
    assert await store.sessions.check() is None


async def test_list_ids_returns_sessions_of_all_owners(store: Harness) -> None:
    await store.sessions.create("a", owner="me", at=1)
    await store.sessions.create("b", owner="you", at=2)
    assert sorted(await store.sessions.list_ids()) == ["a", "b", "s"]


async def test_last_event_numbers_leave_out_missing_sessions(store: Harness) -> None:
    await store.sessions.create("a", owner="you", at=1)
    await store.event_log.append_user_message("a", "one", at=1, key=None)
    await store.event_log.append_user_message("a", "two", at=1, key=None)
    assert dict(await store.sessions.last_event_numbers(["a", "s", "nobody"])) == {"a": 2, "s": 0}
    assert dict(await store.sessions.last_event_numbers([])) == {}


async def test_session_is_created_with_its_model_and_title(store: Harness) -> None:
    await store.sessions.create("named", owner="me", at=1, model="fast", title="Caf\ud83d")
    session = await store.sessions.get("named", owner="me")
    assert (session.model, session.title, session.status) == ("fast", "Caf\ufffd", "pending")
    expected = Checkpoint(model="fast", given_title="Caf\ufffd", title="Caf\ufffd")
    assert await store.event_log.load_checkpoint("named") == expected


async def test_older_mark_after_a_newer_one_changes_nothing(store: Harness) -> None:
    await store.event_log.commit("s", Commit(timestamp=1, events=(says("1"), says("2"))))
    assert await store.sessions.mark_delivered("s", number=2) is True
    await store.event_log.commit("s", Commit(timestamp=1, events=(says("3"),)))
    assert await store.sessions.mark_delivered("s", number=1) is False
    assert await unread(store) == 1


async def test_first_message_names_a_session_until_the_agent_does(store: Harness) -> None:
    await store.event_log.append_user_message("s", f"\n  Count\tthe files {'x' * 100}\nand more", at=1, key=None)
    title = (await store.sessions.get("s", owner="me")).title
    assert (len(title), title[:17], title[-1]) == (80, "Count the files x", "…")
    await store.event_log.append_user_message("s", "and again", at=1, key=None)
    assert (await store.sessions.get("s", owner="me")).title == title
    await store.event_log.commit("s", Commit(timestamp=1, events=(TitleEvent(title="Files"),)))
    await store.event_log.append_user_message("s", "third", at=1, key=None)
    assert (await store.sessions.get("s", owner="me")).title == "Files"


async def test_blank_message_names_no_session(store: Harness) -> None:
    await store.event_log.append_user_message("s", " \n\t", at=1, key=None)
    assert (await store.sessions.get("s", owner="me")).title == ""
    await store.event_log.append_user_message("s", "words", at=1, key=None)
    assert (await store.sessions.get("s", owner="me")).title == "words"


async def test_rename_writes_a_title_event_and_outlives_reopening(store: Harness) -> None:
    await store.event_log.append_user_message("s", "words", at=1, key=None)
    await store.event_log.rename_session("s", "Mine", at=2)
    await store.close()
    await store.open()
    session = await store.sessions.get("s", owner="me")
    assert (session.title, session.last_event_number, session.status) == ("Mine", 2, "running")
    assert [record.type for record in await store.event_log.read("s", after=1, limit=9)] == ["title"]
    checkpoint = await store.event_log.load_checkpoint("s")
    assert (checkpoint.given_title, checkpoint.title) == ("Mine", "Mine")
    with pytest.raises(NotFound):
        await store.event_log.rename_session("nobody", "Mine", at=2)


async def test_pin_is_kept_and_belongs_to_the_owner(store: Harness) -> None:
    await store.sessions.set_pinned("s", owner="me", is_pinned=True)
    with pytest.raises(NotFound):
        await store.sessions.set_pinned("s", owner="other", is_pinned=False)
    await store.close()
    await store.open()
    assert (await store.sessions.get("s", owner="me")).is_pinned
    [session] = (await store.sessions.page(owner="me", limit=9, cursor=None)).sessions
    assert session.is_pinned
    await store.sessions.set_pinned("s", owner="me", is_pinned=False)
    assert not (await store.sessions.get("s", owner="me")).is_pinned


async def test_page_all_returns_the_sessions_of_all_owners_newest_first(store: Harness) -> None:
    for number in range(4):
        await store.sessions.create(f"x{number}", owner=f"owner {number % 2}", at=100 - number)
    await store.event_log.append_user_message("s", "activity does not change the order", at=500, key=None)
    found: list[tuple[str, str]] = []
    cursor: str | None = None
    while True:
        page = await store.sessions.page_all(limit=2, cursor=cursor)
        found.extend((session.id, session.owner) for session in page.sessions)
        if (cursor := page.next_cursor) is None:
            break
    assert found == [("x3", "owner 1"), ("x2", "owner 0"), ("x1", "owner 1"), ("x0", "owner 0"), ("s", "me")]
    with pytest.raises(InvalidInput):
        await store.sessions.page_all(limit=2, cursor="x")


async def test_get_any_returns_a_session_whoever_owns_it(store: Harness) -> None:
    assert await store.sessions.get_any("s") == await store.sessions.get("s", owner="me")
    with pytest.raises(NotFound):
        await store.sessions.get_any("nobody")


async def test_assign_unowned_changes_only_sessions_without_an_owner(store: Harness) -> None:
    await store.sessions.create("old", owner="", at=1)
    assert await store.sessions.assign_unowned("you") == 1
    assert await store.sessions.assign_unowned("other") == 0
    assert await listed(store, owner="you") == ["old"]
    assert await listed(store) == ["s"]
    assert await listed(store, owner="") == []


async def test_count_returns_the_sessions_of_the_owner_up_to_the_limit(store: Harness) -> None:
    await store.sessions.create("t", owner="me", at=1)
    await store.sessions.create("u", owner="other", at=1)
    await store.event_log.append_user_message("t", "go", at=1, key=None)
    await store.event_log.append_user_message("u", "go", at=1, key=None)
    counts = [await store.sessions.count(owner=owner, up_to=10) for owner in ("me", "other", "nobody")]
    assert counts == [2, 1, 0]
    assert await store.sessions.count(owner="me", up_to=1) == 1
    assert await store.sessions.count(owner="me", up_to=10, running_only=True) == 1
    await store.sessions.delete("t", owner="me")
    assert await store.sessions.count(owner="me", up_to=10) == 1
    assert await store.sessions.count(owner="me", up_to=10, running_only=True) == 0
