"""The bus between processes on a real Redis: what passes, and what happens when Redis does not answer."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from app.infrastructure.streams.redis import RedisBus
from app.infrastructure.streams.redis.outbox import OUTBOX_BYTES
from tests.support.feeds import until
from tests.support.redis_server import RedisServer
from tests.support.stores import free_port

PASSWORD = "not-to-be-seen"


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


class Ear:
    """A listener on one channel."""

    def __init__(self, bus: RedisBus, channel: str = "c") -> None:
        self.heard: list[bytes] = []
        self.confirmed = 0
        bus.subscribe(channel, heard=self._hear, confirmed=self._confirm)

    def _hear(self, payload: bytes, sender: bytes) -> None:
        assert len(sender) == 8
        self.heard.append(payload)

    def _confirm(self) -> None:
        self.confirmed += 1


async def test_payloads_pass_in_order_and_not_to_their_sender(server: RedisServer) -> None:
    async with RedisBus(server.url, prefix="p") as one, RedisBus(server.url, prefix="p") as two:
        own, ear = Ear(one), Ear(two)
        await until(lambda: own.confirmed == ear.confirmed == 1)
        sent = [str(number).encode() * 50 for number in range(3_000)]
        for payload in sent:
            one.publish("c", payload)
        await until(lambda: len(ear.heard) == len(sent))
        assert ear.heard == sent
        assert own.heard == []
        assert one.waiting == 0


async def test_a_channel_that_is_let_go_and_taken_again_is_confirmed_again(server: RedisServer) -> None:
    async with RedisBus(server.url, prefix="p") as one, RedisBus(server.url, prefix="p") as two:
        first = Ear(two)
        await until(lambda: first.confirmed == 1)
        two.unsubscribe("c")
        second = Ear(two)
        await until(lambda: second.confirmed == 1)
        two.unsubscribe("c")
        await until(lambda: not two.confirmed("c"))
        await asyncio.gather(server.ask("PING"), two.check())
        third = Ear(two)
        await until(lambda: third.confirmed == 1)
        one.publish("c", b"now")
        await until(lambda: third.heard == [b"now"])
        assert (first.heard, second.heard, first.confirmed) == ([], [], 1)


async def test_many_channels_are_subscribed_to_again_after_redis_was_away(server: RedisServer) -> None:
    async with RedisBus(server.url, prefix="p") as one, RedisBus(server.url, prefix="p") as two:
        ears = [Ear(two, f"c{number}") for number in range(1_200)]
        await until(lambda: all(ear.confirmed == 1 for ear in ears))
        await server.kill()
        await until(lambda: not one.connected and not two.connected)
        await server.start()
        await until(lambda: one.connected and all(ear.confirmed == 2 for ear in ears))
        for number in range(1_200):
            one.publish(f"c{number}", b"again")
        await until(lambda: all(ear.heard == [b"again"] for ear in ears))


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_redis_that_does_not_answer_is_noticed_within_two_seconds_and_said_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level(logging.INFO)
    async with RedisBus(server.url, prefix="p") as bus:
        assert await bus.check() is None
        gone = monotonic()
        if how == "killed":
            await server.kill()
        else:
            server.freeze()
        await until(lambda: not bus.connected)
        reason = await bus.check()
        assert reason is not None
        assert monotonic() - gone < 2
        assert str(server.port) not in reason
        if how == "killed":
            await server.start()
        else:
            server.thaw()
        await until(lambda: bus.connected)
        assert await bus.check() is None
    said = [entry.getMessage() for entry in caplog.records if entry.name.startswith("app.")]
    assert len(said) == 2
    assert said[1] == "Redis is back"
    assert not any(str(server.port) in line for line in said)


async def test_a_check_is_answered_soon_by_a_redis_that_has_just_frozen(server: RedisServer) -> None:
    async with RedisBus(server.url, prefix="p") as bus:
        server.freeze()
        asked = monotonic()
        assert await bus.check() is not None
        assert monotonic() - asked < 2


async def test_a_start_without_redis_is_not_stopped_by_it(caplog: pytest.LogCaptureFixture) -> None:
    began = monotonic()
    async with RedisBus(f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0", prefix="p") as bus:
        assert monotonic() - began < 3
        assert not bus.connected
        reason = await bus.check()
        assert reason is not None
        assert PASSWORD not in reason + caplog.text
        assert "127.0.0.1" not in reason + caplog.text
        assert len(caplog.records) == 1


async def test_a_wrong_password_is_not_shown() -> None:
    async with RedisServer("--requirepass", "right") as server:
        address = f"127.0.0.1:{server.port}"
        async with RedisBus(f"redis://:{PASSWORD}@{address}/0", prefix="p") as bus:
            await until(lambda: "not tried" not in str(bus._failure))
            reason = await bus.check()
            assert reason == "Redis is away (the login in REDIS_URL is missing or refused)"
        async with RedisBus(f"redis://:right@{address}/1?socket_timeout=600&decode_responses=yes", prefix="p") as bus:
            assert await bus.check() is None


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://{PASSWORD}", f"redis://127.0.0.1/0?{PASSWORD}=1", PASSWORD, ""),
        *(f"redis://:{PASSWORD}@[x/0", f"redis://:{PASSWORD}#@127.0.0.1/0", f"redis://:{PASSWORD}@127.0.0.1:x/0"),
        f"rediss://:{PASSWORD}@127.0.0.1/0?ssl_cert_reqs={PASSWORD}",
    ],
)
async def test_an_address_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError) as failure:
        await RedisBus(url, prefix="p").open()
    assert PASSWORD not in str(failure.value)


async def test_a_redis_that_is_away_costs_no_more_memory_the_longer_it_is(server: RedisServer) -> None:
    async with RedisBus(server.url, prefix="p") as one, RedisBus(server.url, prefix="p") as two:
        ear = Ear(two)
        await until(lambda: ear.confirmed == 1)
        server.freeze()
        for number in range(200):
            one.publish("c", b"x" * 10**6)
            one.publish(f"c{number % 5}", b"x")
        assert one._outbox.size <= OUTBOX_BYTES
        await until(lambda: "sending" not in one._up)
        for number in range(1_000):
            one.publish("c", b"x" * 10**4)
            one.tell(f"c{number % 5}")
        assert one._outbox.size == 0
        assert one.waiting <= 6
        server.thaw()
        await until(lambda: one.waiting == 0 and two.connected)
        # What was on its way may have arrived; what was dropped is told in one word.
        await until(lambda: ear.heard[-1:] == [b""] or ear.confirmed == 2)


@pytest.mark.parametrize("right", ["publish", "subscribe", "get", "set", "del"])
async def test_a_redis_that_denies_a_right_is_away_and_is_not_asked_again_and_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture, right: str
) -> None:
    caplog.set_level(logging.INFO)
    await server.ask("ACL", "SETUSER", "default", f"-{right}")
    tries = 0
    async with RedisBus(server.url, prefix="p") as bus:
        bus.publish("c", b"x")
        await until(lambda: not bus.connected)
        before = (await server.ask("INFO", "stats"))["total_connections_received"]
        await asyncio.sleep(1)  # how often it tries in a second
        tries = (await server.ask("INFO", "stats"))["total_connections_received"] - before
        assert await bus.check() == "Redis is away (the user of REDIS_URL may not do this)"
        await server.ask("ACL", "SETUSER", "default", f"+{right}")
        await until(lambda: bus.connected and bus.waiting == 0)
    assert tries <= 15
    assert len([entry for entry in caplog.records if entry.name.startswith("app.")]) == 2  # away, and back


async def test_a_redis_that_is_full_carries_news_all_the_same(server: RedisServer) -> None:
    await server.ask("CONFIG", "SET", "maxmemory", "1")
    async with RedisBus(server.url, prefix="p") as one, RedisBus(server.url, prefix="p") as two:
        ear = Ear(two)
        await until(lambda: ear.confirmed == 1)
        one.publish("c", b"x")
        await until(lambda: ear.heard == [b"x"])


async def test_a_listener_with_a_fault_does_not_leave_the_others_deaf(server: RedisServer) -> None:
    async with RedisBus(server.url, prefix="p") as one, RedisBus(server.url, prefix="p") as two:
        two.subscribe("faulty", heard=lambda _payload, _sender: [][0], confirmed=lambda: None)
        ear = Ear(two)
        await until(lambda: two.confirmed("faulty") and ear.confirmed == 1)
        one.publish("faulty", b"x")
        await until(lambda: ear.confirmed == 2)
        one.publish("c", b"x")
        await until(lambda: ear.heard == [b"x"])


async def test_the_vendors_package_is_loaded_only_when_a_bus_is_opened() -> None:
    code = "import app.bootstrap, app.infrastructure.streams.redis, sys; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
