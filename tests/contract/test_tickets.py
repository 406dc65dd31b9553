"""Contract of the `TicketRepository` port, for the fake and for every store."""

import asyncio

import pytest

from app.domain.errors import LimitReached, NotFound
from app.domain.repositories.tickets import MAX_TICKETS, Ticket
from tests.contract.conftest import Harness, MongoHarness

NOW = 1_700_000_000.25


def ticket(session_id: str = "s", *, view_only: bool = False, seconds: float = 30) -> Ticket:
    return Ticket(session_id=session_id, owner="me", view_only=view_only, expires_at=NOW + seconds)


@pytest.mark.parametrize("view_only", [False, True])
async def test_ticket_is_redeemed_once_even_after_reopening(store: Harness, view_only: bool) -> None:
    await store.tickets.put("d", ticket(view_only=view_only), at=NOW)
    await store.close()
    await store.open()
    assert await store.tickets.redeem("d", session_id="s", at=NOW) == ticket(view_only=view_only)
    assert await store.tickets.redeem("d", session_id="s", at=NOW) is None


async def test_concurrent_redeems_return_a_ticket_once(store: Harness) -> None:
    for number in range(20):
        await store.tickets.put(f"d{number}", ticket(), at=NOW)
    asked = [store.tickets.redeem(f"d{number}", session_id="s", at=NOW) for number in range(20) for _ in range(10)]
    assert sum(found is not None for found in await asyncio.gather(*asked)) == 20


async def test_unknown_digest_redeems_nothing(store: Harness) -> None:
    assert await store.tickets.redeem("d", session_id="s", at=NOW) is None


async def test_redeem_for_another_session_returns_none_and_keeps_the_ticket(store: Harness) -> None:
    await store.sessions.create("other", owner="me", at=1)
    await store.tickets.put("d", ticket(), at=NOW)
    for session_id in ("other", "nobody"):
        assert await store.tickets.redeem("d", session_id=session_id, at=NOW) is None
    assert await store.tickets.redeem("d", session_id="s", at=NOW) == ticket()


async def test_ticket_is_invalid_from_its_expiry_time(store: Harness) -> None:
    await store.tickets.put("late", ticket(), at=NOW)
    await store.tickets.put("in time", ticket(), at=NOW)
    assert await store.tickets.redeem("in time", session_id="s", at=NOW + 29.999) == ticket()
    assert await store.tickets.redeem("late", session_id="s", at=NOW + 30) is None


async def test_put_for_a_missing_session_raises_not_found(store: Harness) -> None:
    with pytest.raises(NotFound):
        await store.tickets.put("d", ticket("gone"), at=NOW)


async def test_tickets_are_deleted_with_their_session(store: Harness) -> None:
    await store.sessions.create("other", owner="me", at=1)
    await store.tickets.put("kept", ticket("other"), at=NOW)
    await store.tickets.put("d", ticket(), at=NOW)
    await store.sessions.delete("s", owner="me")
    assert await store.tickets.redeem("d", session_id="s", at=NOW) is None
    await store.sessions.create("s", owner="me", at=1)
    assert await store.tickets.redeem("d", session_id="s", at=NOW) is None
    assert await store.tickets.redeem("kept", session_id="other", at=NOW) == ticket("other")


async def test_put_beyond_the_limit_of_a_session_is_refused(store: Harness) -> None:
    await store.sessions.create("other", owner="me", at=1)
    for number in range(MAX_TICKETS):
        await store.tickets.put(f"d{number}", ticket(seconds=30 + number), at=NOW)
    with pytest.raises(LimitReached) as refused:
        await store.tickets.put("too many", ticket(), at=NOW + 10)
    assert refused.value.retry_after == 20
    await store.tickets.put("elsewhere", ticket("other"), at=NOW + 10)
    # One ticket is redeemed and one expires, so there is room for two.
    assert await store.tickets.redeem("d50", session_id="s", at=NOW + 10) is not None
    await store.tickets.put("a", ticket(seconds=90), at=NOW + 10)
    await store.tickets.put("b", ticket(seconds=90), at=NOW + 30)
    with pytest.raises(LimitReached):
        await store.tickets.put("c", ticket(seconds=90), at=NOW + 30)
    assert await store.tickets.redeem("a", session_id="s", at=NOW + 31) is not None


async def test_concurrent_redeems_of_many_processes_return_a_ticket_once(mongo: MongoHarness) -> None:
    others = [MongoHarness(mongo.mongod, mongo.client, mongo.database) for _ in range(3)]
    await asyncio.gather(*(other.open() for other in others))
    try:
        for number in range(30):
            await mongo.tickets.put(f"d{number}", ticket(), at=NOW)
        stores = (mongo, *others)
        for number in range(30):
            asked = [each.tickets.redeem(f"d{number}", session_id="s", at=NOW) for each in stores for _ in range(3)]
            assert [found for found in await asyncio.gather(*asked) if found is not None] == [ticket()]
    finally:
        await asyncio.gather(*(other.close() for other in others))
