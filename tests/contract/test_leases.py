"""The `LeaseRepository` port, and the fence of the event_log, on the fake and on MongoDB."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from app.domain.errors import LeaseLost, NotFound, Superseded
from app.domain.models.event import DoneEvent, MessageEvent
from app.domain.models.message import Usage, UserMessage
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.repositories.leases import Lease
from tests.contract.conftest import MemoryHarness, MongoHarness

Leasing = MemoryHarness | MongoHarness
T = TypeVar("T")

LONG = 60.0
SHORT = 0.05
"""Over soon; the store's clock decides when, so tests ask until it is."""


async def until(call: Callable[[], Awaitable[T]], accept: Callable[[T], object] = bool) -> T:
    """What `call` answers, once it is what we wait for."""
    async with asyncio.timeout(30):
        while not accept(answer := await call()):
            await asyncio.sleep(0.005)
        return answer


async def taken(store: Leasing, session_id: str = "s", *, holder: str = "a", seconds: float = LONG) -> Lease:
    lease = await store.leases.acquire(session_id, holder=holder, seconds=seconds)
    assert lease is not None
    return lease


async def wake(store: Leasing, session_id: str = "s") -> int:
    return (await store.event_log.append_user_message(session_id, "go", at=1, key=None)).number


async def test_a_session_is_leased_to_one_at_a_time(leasing: Leasing) -> None:
    assert await taken(leasing) == Lease(session_id="s", token=1, last_user_message=0)
    assert await leasing.leases.acquire("s", holder="b", seconds=LONG) is None
    assert await leasing.leases.acquire("s", holder="a", seconds=LONG) is None


async def test_of_twenty_who_take_at_once_one_gets_it(leasing: Leasing) -> None:
    takes = (leasing.leases.acquire("s", holder=str(n), seconds=LONG) for n in range(20))
    assert sum(lease is not None for lease in await asyncio.gather(*takes)) == 1


async def test_a_lease_that_was_given_back_is_free_at_once_under_a_higher_token(leasing: Leasing) -> None:
    first = await taken(leasing)
    assert await leasing.leases.release(first) is False
    second = await taken(leasing, holder="b")
    assert second.token > first.token
    assert not second.previous_holder_lost


async def test_a_lease_whose_time_is_over_is_inherited(leasing: Leasing) -> None:
    first = await taken(leasing, seconds=SHORT)
    second = await until(lambda: leasing.leases.acquire("s", holder="b", seconds=LONG))
    assert second is not None
    assert second.token > first.token
    assert second.previous_holder_lost


async def test_a_lease_tells_the_newest_words_and_the_stop_that_is_asked_for(leasing: Leasing) -> None:
    await wake(leasing)
    newest = await wake(leasing)
    await leasing.event_log.commit("s", Commit(timestamp=1, events=[MessageEvent(role="assistant", content="x")]))
    await leasing.leases.request_stop("s", up_to=1)
    assert await taken(leasing) == Lease(session_id="s", token=1, last_user_message=newest, stop_up_to=1)


async def test_giving_back_tells_whether_there_is_work_again(leasing: Leasing) -> None:
    await wake(leasing)
    assert await leasing.leases.release(await taken(leasing)) is True
    lease = await taken(leasing)
    await leasing.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    assert await leasing.leases.release(lease) is False


async def test_a_lease_that_was_lost_cannot_be_given_back(leasing: Leasing) -> None:
    await wake(leasing)
    old = await taken(leasing, seconds=SHORT)
    await until(lambda: leasing.leases.acquire("s", holder="b", seconds=LONG))
    assert await leasing.leases.release(old) is False
    assert await leasing.leases.acquire("s", holder="c", seconds=LONG) is None


async def test_renewing_keeps_every_lease_of_a_holder_and_nobody_elses(leasing: Leasing) -> None:
    for name in ("t", "u", "v"):
        await leasing.sessions.create(name, owner="me", at=1)
    for name in ("s", "t"):
        await taken(leasing, name, seconds=SHORT)
    await taken(leasing, "u", holder="b", seconds=SHORT)
    gone = await taken(leasing, "v")
    await leasing.leases.release(gone)
    await wake(leasing, "t")
    renewed = await leasing.leases.renew(holder="a", seconds=LONG)
    assert sorted((lease.session_id, lease.token, lease.last_user_message) for lease in renewed) == [
        ("s", 1, 0),
        ("t", 1, 1),
    ]
    await until(lambda: leasing.leases.acquire("u", holder="c", seconds=LONG))
    assert await leasing.leases.acquire("s", holder="c", seconds=LONG) is None
    assert await leasing.leases.acquire("t", holder="c", seconds=LONG) is None


async def test_a_lease_that_is_over_can_be_renewed_until_somebody_takes_it(leasing: Leasing) -> None:
    await wake(leasing)
    lease = await taken(leasing, seconds=0)
    assert await leasing.leases.list_claimable(limit=9) == ["s"]
    assert [each.token for each in await leasing.leases.renew(holder="a", seconds=0)] == [lease.token]
    await taken(leasing, holder="b")
    assert list(await leasing.leases.renew(holder="a", seconds=LONG)) == []


async def test_the_leases_of_a_deleted_session_are_gone(leasing: Leasing) -> None:
    lease = await taken(leasing)
    await leasing.sessions.delete("s", owner="me")
    assert list(await leasing.leases.renew(holder="a", seconds=LONG)) == []
    assert await leasing.leases.release(lease) is False
    await leasing.leases.clear_stop_request("s", up_to=1)
    assert list(await leasing.leases.list_claimable(limit=9)) == []


async def test_seizing_takes_the_session_from_whoever_has_it_and_tells_who_had(leasing: Leasing) -> None:
    assert await leasing.leases.take_over("s", holder="a", seconds=LONG) is None
    assert await leasing.leases.take_over("s", holder="b", seconds=LONG) == "a"
    assert list(await leasing.leases.renew(holder="a", seconds=LONG)) == []
    assert [lease.token for lease in await leasing.leases.renew(holder="b", seconds=0)] == [2]
    assert await leasing.leases.take_over("s", holder="c", seconds=LONG) is None


async def test_work_without_a_holder_is_claimable_longest_waiting_first(leasing: Leasing) -> None:
    for name in ("rests", "held", "late", "early", "stops"):
        await leasing.sessions.create(name, owner="me", at=1)
    for name in ("held", "late", "early"):
        await wake(leasing, name)
    await taken(leasing, "held")
    await taken(leasing, "early", seconds=0)
    await taken(leasing, "late", seconds=SHORT)
    await leasing.leases.request_stop("stops", up_to=1)
    found = await until(lambda: leasing.leases.list_claimable(limit=9), lambda ids: len(ids) == 3)
    assert found == ["stops", "early", "late"]
    assert await leasing.leases.list_claimable(limit=2) == ["stops", "early"]
    assert list(await leasing.leases.list_claimable(limit=0)) == []


async def test_the_largest_stop_counts_until_it_is_answered(leasing: Leasing) -> None:
    assert await leasing.leases.requested_stop("s") is None
    await leasing.leases.request_stop("s", up_to=3)
    await leasing.leases.request_stop("s", up_to=2)
    assert await leasing.leases.requested_stop("s") == 3
    await leasing.leases.clear_stop_request("s", up_to=2)
    assert await leasing.leases.requested_stop("s") == 3
    await leasing.leases.clear_stop_request("s", up_to=3)
    assert await leasing.leases.requested_stop("s") is None
    assert list(await leasing.leases.list_claimable(limit=9)) == []


async def test_nobody_leases_a_session_that_does_not_exist(leasing: Leasing) -> None:
    for call in (
        leasing.leases.acquire("no", holder="a", seconds=1),
        leasing.leases.take_over("no", holder="a", seconds=1),
        leasing.leases.request_stop("no", up_to=1),
        leasing.leases.requested_stop("no"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_any_name_may_hold_a_lease(leasing: Leasing) -> None:
    for name in ("$owner", "ü\x00", "a.b", "$$NOW"):
        assert await leasing.leases.take_over("s", holder=name, seconds=LONG) is None
        (lease,) = await leasing.leases.renew(holder=name, seconds=LONG)
        await leasing.leases.release(lease)


async def test_what_is_written_under_an_old_lease_is_refused_whole(leasing: Leasing) -> None:
    old = await taken(leasing)
    await leasing.event_log.commit(
        "s", Commit(timestamp=1, events=[MessageEvent(role="user", content="1")], fencing_token=old.token)
    )
    await leasing.leases.take_over("s", holder="b", seconds=LONG)
    late = Commit(
        timestamp=1,
        events=[DoneEvent()],
        messages=[("planner", UserMessage(content="x"))],
        checkpoint=Checkpoint(model_turns=9),
        usage=Usage(calls=1),
        fencing_token=old.token,
    )
    for change in (
        late,
        Commit(timestamp=1, checkpoint=Checkpoint(model_turns=9), fencing_token=old.token),
        Commit(timestamp=1, fencing_token=old.token),
    ):
        with pytest.raises(LeaseLost):
            await leasing.event_log.commit("s", change)
    assert (await leasing.sessions.get("s", owner="me")).last_event_number == 1
    assert list(await leasing.event_log.load_transcript("s", "planner")) == []
    assert await leasing.event_log.load_checkpoint("s") == Checkpoint()
    assert await leasing.sessions.usage("s") == Usage()
    assert [
        record.number
        for record in await leasing.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=2))
    ] == [2]


async def test_a_lease_that_is_over_still_writes_until_somebody_takes_it(leasing: Leasing) -> None:
    lease = await taken(leasing, seconds=0)
    await leasing.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    await leasing.leases.release(lease)
    await leasing.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))
    assert (await leasing.sessions.get("s", owner="me")).last_event_number == 2


async def test_a_fence_does_not_stop_the_user_nor_hide_that_the_session_is_gone(leasing: Leasing) -> None:
    lease = await taken(leasing)
    newest = await wake(leasing)
    with pytest.raises(Superseded):
        await leasing.event_log.commit(
            "s", Commit(timestamp=1, events=[DoneEvent()], ends_after_message=0, fencing_token=lease.token)
        )
    await leasing.event_log.commit(
        "s", Commit(timestamp=1, events=[DoneEvent()], ends_after_message=newest, fencing_token=lease.token)
    )
    await leasing.sessions.delete("s", owner="me")
    with pytest.raises(NotFound):
        await leasing.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=lease.token))


async def test_writes_under_both_leases_at_once_are_all_of_one_or_none_of_the_other(leasing: Leasing) -> None:
    old = await taken(leasing)

    async def write(fence: int) -> type[BaseException] | None:
        try:
            await leasing.event_log.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=fence))
        except LeaseLost as lost:
            return type(lost)
        return None

    before = [asyncio.create_task(write(old.token)) for _ in range(10)]
    await leasing.leases.take_over("s", holder="b", seconds=LONG)
    after = await asyncio.gather(*(write(fence) for fence in (1, 2, 1, 2)))
    stored = (await asyncio.gather(*before)).count(None)
    assert after == [LeaseLost, None, LeaseLost, None]
    assert (await leasing.sessions.get("s", owner="me")).last_event_number == stored + 2
