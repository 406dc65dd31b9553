"""Contract of the `LeaseRepository` port and of fencing tokens, for the fake and for MongoDB."""

import asyncio
from collections.abc import Sequence

import pytest

from app.domain.errors import LeaseLost, NotFound, Superseded
from app.domain.models.event import DoneEvent, MessageEvent
from app.domain.models.message import Usage, UserMessage
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.repositories.leases import Lease
from tests.contract.conftest import LeasingHarness
from tests.support.eventually import eventually


@pytest.fixture
def store(leasing: LeasingHarness) -> LeasingHarness:
    return leasing


LONG_SECONDS = 60.0
SHORT_SECONDS = 0.05
"""Duration of a lease that expires soon. The store's clock decides when, so tests poll."""


async def acquired(
    store: LeasingHarness, session_id: str = "s", *, holder: str = "a", seconds: float = LONG_SECONDS
) -> Lease:
    lease = await store.leases.acquire(session_id, holder=holder, seconds=seconds)
    assert lease is not None
    return lease


async def claimable(store: LeasingHarness, *, count: int) -> Sequence[str] | None:
    """Return the claimable sessions if there are `count` of them."""
    found = await claim_order(store)
    return found if len(found) == count else None


async def claim_order(store: LeasingHarness, *, limit: int = 99) -> list[str]:
    """Return the ids of the claimable sessions in order."""
    return [each.session_id for each in await store.leases.list_claimable(limit=limit)]


async def add_user_message(store: LeasingHarness, session_id: str = "s") -> int:
    return (await store.event_log.append_user_message(session_id, "go", at=1, key=None)).number


async def test_acquire_while_a_lease_is_valid_returns_none(store: LeasingHarness) -> None:
    assert await acquired(store) == Lease(session_id="s", token=1, owner="me", last_user_message=0)
    assert await store.leases.acquire("s", holder="b", seconds=LONG_SECONDS) is None
    assert await store.leases.acquire("s", holder="a", seconds=LONG_SECONDS) is None


async def test_concurrent_acquires_grant_one_lease(store: LeasingHarness) -> None:
    acquires = (store.leases.acquire("s", holder=str(n), seconds=LONG_SECONDS) for n in range(20))
    assert sum(lease is not None for lease in await asyncio.gather(*acquires)) == 1


async def test_released_lease_can_be_acquired_with_a_higher_token(store: LeasingHarness) -> None:
    first = await acquired(store)
    assert await store.leases.release(first) is False
    second = await acquired(store, holder="b")
    assert second.token > first.token
    assert not second.previous_holder_lost


async def test_expired_lease_can_be_acquired_and_its_holder_counts_as_lost(store: LeasingHarness) -> None:
    first = await acquired(store, seconds=SHORT_SECONDS)
    second = await eventually(lambda: store.leases.acquire("s", holder="b", seconds=LONG_SECONDS))
    assert second is not None
    assert second.token > first.token
    assert second.previous_holder_lost


async def test_lease_has_the_newest_user_message_and_the_requested_stop(store: LeasingHarness) -> None:
    await add_user_message(store)
    newest = await add_user_message(store)
    await store.event_log.commit("s", Commit(timestamp=1, events=[MessageEvent(role="assistant", content="x")]))
    await store.leases.request_stop("s", up_to=1)
    assert await acquired(store) == Lease(session_id="s", token=1, owner="me", last_user_message=newest, stop_up_to=1)


async def test_release_returns_whether_the_session_is_active(store: LeasingHarness) -> None:
    await add_user_message(store)
    assert await store.leases.release(await acquired(store)) is True
    lease = await acquired(store)
    await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    assert await store.leases.release(lease) is False


async def test_release_of_a_lost_lease_returns_false_and_frees_nothing(store: LeasingHarness) -> None:
    await add_user_message(store)
    old = await acquired(store, seconds=SHORT_SECONDS)
    await eventually(lambda: store.leases.acquire("s", holder="b", seconds=LONG_SECONDS))
    assert await store.leases.release(old) is False
    assert await store.leases.acquire("s", holder="c", seconds=LONG_SECONDS) is None


async def test_renew_extends_all_leases_of_the_holder_and_no_others(store: LeasingHarness) -> None:
    for name in ("t", "u", "v"):
        await store.sessions.create(name, owner="me", at=1)
    for name in ("s", "t"):
        await acquired(store, name, seconds=SHORT_SECONDS)
    await acquired(store, "u", holder="b", seconds=SHORT_SECONDS)
    gone = await acquired(store, "v")
    await store.leases.release(gone)
    await add_user_message(store, "t")
    renewed = await store.leases.renew(holder="a", seconds=LONG_SECONDS)
    assert sorted((lease.session_id, lease.token, lease.last_user_message) for lease in renewed) == [
        ("s", 1, 0),
        ("t", 1, 1),
    ]
    await eventually(lambda: store.leases.acquire("u", holder="c", seconds=LONG_SECONDS))
    assert await store.leases.acquire("s", holder="c", seconds=LONG_SECONDS) is None
    assert await store.leases.acquire("t", holder="c", seconds=LONG_SECONDS) is None


async def test_expired_lease_can_be_renewed_until_it_is_acquired(store: LeasingHarness) -> None:
    await add_user_message(store)
    lease = await acquired(store, seconds=0)
    assert await claim_order(store) == ["s"]
    assert [each.token for each in await store.leases.renew(holder="a", seconds=0)] == [lease.token]
    await acquired(store, holder="b")
    assert list(await store.leases.renew(holder="a", seconds=LONG_SECONDS)) == []


async def test_leases_of_a_deleted_session_are_gone(store: LeasingHarness) -> None:
    lease = await acquired(store)
    await store.sessions.delete("s", owner="me")
    assert list(await store.leases.renew(holder="a", seconds=LONG_SECONDS)) == []
    assert await store.leases.release(lease) is False
    await store.leases.clear_stop_request("s", up_to=1)
    assert list(await store.leases.list_claimable(limit=9)) == []


async def test_take_over_returns_the_holder_of_a_valid_lease(store: LeasingHarness) -> None:
    assert await store.leases.take_over("s", holder="a", seconds=LONG_SECONDS) is None
    assert await store.leases.take_over("s", holder="b", seconds=LONG_SECONDS) == "a"
    assert list(await store.leases.renew(holder="a", seconds=LONG_SECONDS)) == []
    assert [lease.token for lease in await store.leases.renew(holder="b", seconds=0)] == [2]
    assert await store.leases.take_over("s", holder="c", seconds=LONG_SECONDS) is None


async def test_claimable_sessions_are_listed_longest_waiting_first(store: LeasingHarness) -> None:
    for name in ("rests", "held", "late", "early", "stops"):
        await store.sessions.create(name, owner="me", at=1)
    for name in ("held", "early", "late"):
        await add_user_message(store, name)
    await acquired(store, "held")
    await acquired(store, "early", seconds=0)
    await acquired(store, "late", seconds=SHORT_SECONDS)
    await store.leases.request_stop("stops", up_to=1)
    found = await eventually(lambda: claimable(store, count=3))
    assert found == ["stops", "early", "late"]
    assert await claim_order(store, limit=2) == ["stops", "early"]
    assert [each.is_stopping for each in await store.leases.list_claimable(limit=2)] == [True, False]
    assert list(await store.leases.list_claimable(limit=0)) == []


async def test_claimable_session_of_the_owner_with_fewest_leases_comes_first(store: LeasingHarness) -> None:
    for number in range(6):
        await store.sessions.create(f"many {number}", owner="many", at=1)
        await add_user_message(store, f"many {number}")
    for owner in ("few", "one"):
        for number in range(2):
            await store.sessions.create(f"{owner} {number}", owner=owner, at=1)
            await add_user_message(store, f"{owner} {number}")
    for name in ("many 0", "many 1", "one 0"):
        await acquired(store, name)
    expected = ["few 0", "few 1", "one 1", "many 2", "many 3", "many 4", "many 5"]
    assert await claim_order(store) == expected
    assert await claim_order(store, limit=2) == expected[:2]
    assert (await store.leases.list_claimable(limit=1))[0].owner == "few"


async def test_released_session_with_work_waits_behind_those_that_waited_before(store: LeasingHarness) -> None:
    await add_user_message(store)
    lease = await acquired(store)
    await store.sessions.create("t", owner="me", at=1)
    await add_user_message(store, "t")
    assert await store.leases.release(lease)
    assert await claim_order(store) == ["t", "s"]


async def test_largest_requested_stop_counts_until_it_is_cleared(store: LeasingHarness) -> None:
    assert await store.leases.requested_stop("s") is None
    await store.leases.request_stop("s", up_to=3)
    await store.leases.request_stop("s", up_to=2)
    assert await store.leases.requested_stop("s") == 3
    await store.leases.clear_stop_request("s", up_to=2)
    assert await store.leases.requested_stop("s") == 3
    await store.leases.clear_stop_request("s", up_to=3)
    assert await store.leases.requested_stop("s") is None
    assert list(await store.leases.list_claimable(limit=9)) == []


async def test_lease_methods_raise_not_found_for_a_missing_session(store: LeasingHarness) -> None:
    for call in (
        store.leases.acquire("no", holder="a", seconds=1),
        store.leases.take_over("no", holder="a", seconds=1),
        store.leases.request_stop("no", up_to=1),
        store.leases.requested_stop("no"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_holder_may_have_any_name(store: LeasingHarness) -> None:
    for name in ("$owner", "ü\x00", "a.b", "$$NOW"):
        assert await store.leases.take_over("s", holder=name, seconds=LONG_SECONDS) is None
        (lease,) = await store.leases.renew(holder=name, seconds=LONG_SECONDS)
        await store.leases.release(lease)


async def test_commit_with_an_old_token_is_refused_completely(store: LeasingHarness) -> None:
    old = await acquired(store)
    await store.event_log.commit(
        "s", Commit(timestamp=1, events=[MessageEvent(role="user", content="1")], fencing_token=old.token)
    )
    await store.leases.take_over("s", holder="b", seconds=LONG_SECONDS)
    late = Commit(
        timestamp=1,
        events=[DoneEvent()],
        messages=[("planner", UserMessage(content="x"))],
        checkpoint=Checkpoint(steps_started=9),
        usage=Usage(calls=1),
        fencing_token=old.token,
    )
    for commit in (
        late,
        Commit(timestamp=1, checkpoint=Checkpoint(steps_started=9), fencing_token=old.token),
        Commit(timestamp=1, fencing_token=old.token),
    ):
        with pytest.raises(LeaseLost):
            await store.event_log.commit("s", commit)
    assert (await store.sessions.get("s", owner="me")).last_event_number == 1
    assert list(await store.event_log.load_transcript("s", "planner")) == []
    assert await store.event_log.load_checkpoint("s") == Checkpoint()
    assert (await store.sessions.get("s", owner="me")).usage == Usage()
    assert [
        record.number
        for record in await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=2))
    ] == [2]


async def test_commit_under_an_expired_lease_is_stored_until_it_is_acquired(store: LeasingHarness) -> None:
    lease = await acquired(store, seconds=0)
    await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    await store.leases.release(lease)
    await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    assert (await store.sessions.get("s", owner="me")).last_event_number == 2


async def test_valid_token_does_not_hide_superseded_or_not_found(store: LeasingHarness) -> None:
    lease = await acquired(store)
    newest = await add_user_message(store)
    with pytest.raises(Superseded):
        await store.event_log.commit(
            "s", Commit(timestamp=1, events=[DoneEvent()], ends_after_message=0, fencing_token=lease.token)
        )
    await store.event_log.commit(
        "s", Commit(timestamp=1, events=[DoneEvent()], ends_after_message=newest, fencing_token=lease.token)
    )
    await store.sessions.delete("s", owner="me")
    with pytest.raises(NotFound):
        await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))


async def test_commits_with_the_old_token_fail_once_the_session_is_taken_over(store: LeasingHarness) -> None:
    old = await acquired(store)

    async def write(token: int) -> type[BaseException] | None:
        try:
            await store.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=token))
        except LeaseLost as lost:
            return type(lost)
        return None

    before = [asyncio.create_task(write(old.token)) for _ in range(10)]
    await store.leases.take_over("s", holder="b", seconds=LONG_SECONDS)
    after = await asyncio.gather(*(write(token) for token in (1, 2, 1, 2)))
    stored = (await asyncio.gather(*before)).count(None)
    assert after == [LeaseLost, None, LeaseLost, None]
    assert (await store.sessions.get("s", owner="me")).last_event_number == stored + 2
