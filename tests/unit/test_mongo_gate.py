"""When MongoDB counts as away: the gate's own rule, without a server."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.driver import Driver
from app.infrastructure.persistence.mongo.gate import Gate


class SlowServer(Driver):
    """Answers a look when `answers`; otherwise the look waits for ever."""

    def __init__(self) -> None:
        super().__init__("mongodb://127.0.0.1:1/", "none", "pymongo")
        self.answers = asyncio.Event()
        self.looks = 0
        self.looked = asyncio.Condition()

    async def command(self, name: str) -> Document:
        async with self.looked:
            self.looks += 1
            self.looked.notify_all()
        await self.answers.wait()
        return {}

    async def until_looked(self, times: int) -> None:
        async with asyncio.timeout(20), self.looked:
            await self.looked.wait_for(lambda: self.looks >= times)


async def answer() -> int:
    return 1


@pytest.fixture
async def gate() -> AsyncIterator[tuple[Gate, SlowServer, list[StoreUnavailable]]]:
    refused: list[StoreUnavailable] = []
    server = SlowServer()
    made = Gate(server, on_closed=refused.append)
    made.start()
    yield made, server, refused
    await made.close()


Parts = tuple[Gate, SlowServer, list[StoreUnavailable]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_one_look_that_is_slow_is_no_reason(gate: Parts) -> None:
    opened, server, refused = gate
    await server.until_looked(2)  # the first was given up
    server.answers.set()
    await server.until_looked(4)
    assert opened.reason is None
    assert not refused


async def test_slow_looks_are_no_reason_while_the_work_goes_on(gate: Parts) -> None:
    opened, server, refused = gate
    for look in range(1, 5):
        await server.until_looked(look)
        assert await opened.read(answer) == 1
    assert opened.reason is None
    assert not refused


async def test_two_slow_looks_and_nothing_else_close_the_gate_until_one_succeeds(gate: Parts) -> None:
    opened, server, refused = gate
    never = asyncio.create_task(opened.read(asyncio.Event().wait))
    await until(lambda: opened.reason is not None)
    assert [str(error) for error in refused] == [opened.reason]
    with pytest.raises(StoreUnavailable):
        await never
    for call in (opened.read, opened.write):
        with pytest.raises(StoreUnavailable, match="does not answer in time"):
            await call(answer)
    server.answers.set()
    await until(lambda: opened.reason is None)
    assert await opened.write(answer) == 1


async def test_a_caller_that_is_cancelled_does_not_wait_for_a_client_that_will_not_hear_of_it(gate: Parts) -> None:
    opened, _, _ = gate
    begun, end = asyncio.Event(), asyncio.Event()

    async def deaf() -> None:
        begun.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue

    caller = asyncio.create_task(opened.read(deaf))
    await begun.wait()
    caller.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    end.set()


async def test_who_must_not_wait_is_refused_when_the_gate_closes_and_the_work_goes_on(gate: Parts) -> None:
    opened, server, _ = gate
    let_go, done = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        await let_go.wait()
        done.set()
        return 1

    waiting = asyncio.create_task(opened.unless_closed(work()))
    await server.until_looked(2)  # both are given up: the server hangs
    with pytest.raises(StoreUnavailable):
        await waiting
    assert not done.is_set()
    let_go.set()
    await done.wait()


async def test_who_must_not_wait_gets_the_answer_while_the_gate_is_open(gate: Parts) -> None:
    opened, server, _ = gate
    server.answers.set()
    assert await opened.unless_closed(answer()) == 1
