"""The connection of a process to a real Redis: what is delivered, and what happens while Redis does not respond."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from app.infrastructure.streams.redis.connection import RedisConnection
from app.infrastructure.streams.redis.publisher import MAX_OUTBOX_BYTES
from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer
from tests.support.stores import free_port

PASSWORD = "not-to-be-seen"

CANCELLATION_TURNS = 60
"""Number of turns of the event loop within which a connection is opened and several commands are executed."""


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def connections(server: RedisServer) -> AsyncIterator[list[RedisConnection]]:
    async with RedisConnection(server.url, prefix="p") as first, RedisConnection(server.url, prefix="p") as second:
        yield [first, second]


class RecordingListener:
    """Subscribes to one channel and records what it receives."""

    def __init__(self, connection: RedisConnection, channel: str = "c") -> None:
        self.payloads: list[bytes] = []
        self.confirmations = 0
        connection.subscriber.subscribe(connection.name(channel), self._on_message)

    def _on_message(self, payload: bytes, sender: bytes) -> None:
        if sender:
            assert len(sender) == 16
            self.payloads.append(payload)
        else:
            assert payload == b""
            self.confirmations += 1


def publish(connection: RedisConnection, payload: bytes, channel: str = "c") -> None:
    """Publish `payload` on a channel."""
    connection.publisher.publish(connection.name(channel), payload)


def service_logs(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the service logged."""
    return [entry.getMessage() for entry in caplog.records if entry.name.startswith("app.")]


async def connections_opened(server: RedisServer) -> int:
    """Return how many connections the server has accepted."""
    return (await server.execute("INFO", "stats"))["total_connections_received"]


async def test_messages_arrive_in_order_and_not_at_their_sender(connections: list[RedisConnection]) -> None:
    first, second = connections
    own, other = RecordingListener(first), RecordingListener(second)
    await eventually(lambda: own.confirmations == other.confirmations == 1)
    sent = [str(number).encode() * 50 for number in range(3_000)]
    for payload in sent:
        publish(first, payload)
    await eventually(lambda: len(other.payloads) == len(sent))
    assert other.payloads == sent
    assert own.payloads == []
    assert len(first.publisher) == 0


async def test_channel_subscribed_again_is_confirmed_again(
    server: RedisServer, connections: list[RedisConnection]
) -> None:
    first, second = connections
    channel = second.name("c")
    first_listener = RecordingListener(second)
    await eventually(lambda: first_listener.confirmations == 1)
    second.subscriber.unsubscribe(channel)
    second_listener = RecordingListener(second)
    await eventually(lambda: second_listener.confirmations == 1)
    second.subscriber.unsubscribe(channel)
    await eventually(lambda: not second.subscriber.is_subscribed(channel))
    await asyncio.gather(server.execute("PING"), second.check())
    third_listener = RecordingListener(second)
    await eventually(lambda: third_listener.confirmations == 1)
    publish(first, b"now")
    await eventually(lambda: third_listener.payloads == [b"now"])
    assert (first_listener.payloads, second_listener.payloads, first_listener.confirmations) == ([], [], 1)


async def test_subscriptions_change_many_times_without_losing_one(connections: list[RedisConnection]) -> None:
    first, second = connections
    for round_number in range(30):
        listener = RecordingListener(second)
        if round_number % 3:
            await asyncio.sleep(0.001 * (round_number % 5))
        if round_number < 29:
            second.subscriber.unsubscribe(second.name("c"))
    await eventually(lambda: listener.confirmations > 0)
    await second.check()
    publish(first, b"now")
    await eventually(lambda: listener.payloads == [b"now"])


async def test_all_channels_are_subscribed_again_after_redis_restarted(
    server: RedisServer, connections: list[RedisConnection]
) -> None:
    first, second = connections
    listeners = [RecordingListener(second, f"c{number}") for number in range(1_200)]
    await eventually(lambda: all(listener.confirmations == 1 for listener in listeners))
    await server.kill()
    await eventually(lambda: not first.connected and not second.connected)
    await server.start()
    await eventually(lambda: first.connected and all(listener.confirmations == 2 for listener in listeners))
    for number in range(1_200):
        publish(first, b"again", f"c{number}")
    await eventually(lambda: all(listener.payloads == [b"again"] for listener in listeners))


async def test_subscriptions_survive_repeated_disconnections(
    server: RedisServer, connections: list[RedisConnection]
) -> None:
    first, second = connections
    listeners = [RecordingListener(second, f"c{number}") for number in range(50)]
    for _ in range(5):
        await server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        listeners.append(RecordingListener(second, f"c{len(listeners)}"))
    await eventually(lambda: second.connected and all(listener.confirmations for listener in listeners))
    await eventually(lambda: first.connected)
    for number in range(len(listeners)):
        publish(first, b"again", f"c{number}")
    await eventually(lambda: all(listener.payloads == [b"again"] for listener in listeners))


@pytest.mark.parametrize("failure", ["killed", "frozen"])
async def test_unresponsive_redis_is_noticed_within_two_seconds_and_logged_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    caplog.set_level(logging.INFO)
    async with RedisConnection(server.url, prefix="p") as connection:
        assert await connection.check() is None
        failed_at = monotonic()
        if failure == "killed":
            await server.kill()
        else:
            server.freeze()
        await eventually(lambda: not connection.connected)
        reason = await connection.check()
        assert reason is not None
        assert monotonic() - failed_at < 2
        assert str(server.port) not in reason
        if failure == "killed":
            await server.start()
        else:
            server.thaw()
        await eventually(lambda: connection.connected)
        assert await connection.check() is None
    logged = service_logs(caplog)
    assert len(logged) == 2
    assert logged[0].startswith("Redis is unavailable (")
    assert logged[1] == "Redis is available again"
    assert not any(str(server.port) in line for line in logged)


async def test_check_of_a_redis_that_just_froze_returns_within_two_seconds(server: RedisServer) -> None:
    async with RedisConnection(server.url, prefix="p") as connection:
        server.freeze()
        started = monotonic()
        assert await connection.check() is not None
        assert monotonic() - started < 2


async def test_start_without_redis_continues_and_shows_no_address(caplog: pytest.LogCaptureFixture) -> None:
    started = monotonic()
    async with RedisConnection(f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0", prefix="p") as connection:
        assert monotonic() - started < 3
        assert not connection.connected
        reason = await connection.check()
        assert reason == "Redis is unavailable (no connection)"
        assert PASSWORD not in caplog.text
        assert "127.0.0.1" not in caplog.text
        assert len(caplog.records) == 1


async def test_wrong_password_is_reported_without_showing_it() -> None:
    async with RedisServer("--requirepass", "right") as server:
        address = f"127.0.0.1:{server.port}"
        async with RedisConnection(f"redis://:{PASSWORD}@{address}/0", prefix="p") as connection:
            expected = "Redis is unavailable (the login in REDIS_URL is missing or refused)"
            reason = await connection.check()
            while reason != expected:
                assert reason == "Redis is unavailable (still connecting)"
                reason = await connection.check()


async def test_options_in_the_url_do_not_break_the_connection(server: RedisServer) -> None:
    query = "socket_timeout=600&decode_responses=yes&protocol=3&max_connections=1&health_check_interval=1"
    async with (
        RedisConnection(f"{server.url}?{query}", prefix="p") as first,
        RedisConnection(server.url.replace("/0", "/1"), prefix="p") as second,
    ):
        listener = RecordingListener(first)
        await eventually(lambda: listener.confirmations == 1)
        publish(second, b"\xff")
        await eventually(lambda: listener.payloads == [b"\xff"])
        assert await first.check() is None


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://{PASSWORD}", f"redis://127.0.0.1/0?{PASSWORD}=1", PASSWORD, ""),
        *(f"redis://:{PASSWORD}@[x/0", f"redis://:{PASSWORD}#@127.0.0.1/0", f"redis://:{PASSWORD}@127.0.0.1:x/0"),
        f"rediss://:{PASSWORD}@127.0.0.1/0?ssl_cert_reqs={PASSWORD}",
    ],
)
async def test_invalid_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError) as failure:
        async with RedisConnection(url, prefix="p"):
            pass
    assert PASSWORD not in str(failure.value)


async def test_missing_certificate_file_is_reported() -> None:
    url = f"rediss://127.0.0.1:{free_port()}/0?ssl_ca_certs=/does/not/exist"
    async with RedisConnection(url, prefix="p") as connection:
        reason = await eventually(connection.check)
        assert reason == "Redis is unavailable (a file that REDIS_URL names does not exist)"


async def test_memory_stays_bounded_while_redis_is_unavailable(
    server: RedisServer, connections: list[RedisConnection]
) -> None:
    first, second = connections
    listener = RecordingListener(second)
    await eventually(lambda: listener.confirmations == 1)
    server.freeze()
    for number in range(200):
        publish(first, b"x" * 10**6)
        publish(first, b"x", f"c{number % 5}")
    assert first.publisher._messages_size <= MAX_OUTBOX_BYTES
    await eventually(lambda: not first.publisher.connected)
    for number in range(1_000):
        publish(first, b"x" * 10**4)
        first.publisher.notify(first.name(f"c{number % 5}"))
    assert first.publisher._messages_size == 0
    assert len(first.publisher) <= 6
    server.thaw()
    await eventually(lambda: len(first.publisher) == 0 and second.connected)
    # Redis may have received what was in flight. A notification replaces what was dropped.
    await eventually(lambda: listener.payloads[-1:] == [b""] or listener.confirmations == 2)


@pytest.mark.parametrize("permission", ["publish", "subscribe", "unsubscribe"])
async def test_missing_permission_is_reported_and_retried_with_pauses(
    server: RedisServer, caplog: pytest.LogCaptureFixture, permission: str
) -> None:
    caplog.set_level(logging.INFO)
    await server.execute("ACL", "SETUSER", "default", f"-{permission}")
    async with RedisConnection(server.url, prefix="p") as connection:
        publish(connection, b"x")
        await eventually(lambda: connection.check())
        before = await connections_opened(server)
        await asyncio.sleep(1)  # The number of attempts within a second is the subject of this test.
        attempts = await connections_opened(server) - before
        assert await connection.check() == "Redis is unavailable (the user of REDIS_URL may not do this)"
        await server.execute("ACL", "SETUSER", "default", f"+{permission}")
        await eventually(lambda: connection.connected and len(connection.publisher) == 0)
    assert attempts <= 15
    assert len(service_logs(caplog)) == 2


async def test_full_redis_still_delivers_messages(server: RedisServer) -> None:
    await server.execute("CONFIG", "SET", "maxmemory", "1")
    async with RedisConnection(server.url, prefix="p") as first, RedisConnection(server.url, prefix="p") as second:
        listener = RecordingListener(second)
        await eventually(lambda: listener.confirmations == 1)
        publish(first, b"x")
        await eventually(lambda: listener.payloads == [b"x"])


async def test_failing_listener_does_not_stop_the_others(connections: list[RedisConnection]) -> None:
    first, second = connections
    failing = second.name("failing")
    second.subscriber.subscribe(failing, lambda _payload, sender: [][0] if sender else None)
    listener = RecordingListener(second)
    await eventually(lambda: second.subscriber.is_subscribed(failing) and listener.confirmations == 1)
    publish(first, b"x", "failing")
    await eventually(lambda: listener.confirmations == 2)
    publish(first, b"x")
    await eventually(lambda: listener.payloads == [b"x"])


async def test_close_sends_what_waits(server: RedisServer, connections: list[RedisConnection]) -> None:
    listener = RecordingListener(connections[0])
    await eventually(lambda: listener.confirmations == 1)
    async with RedisConnection(server.url, prefix="p") as closing:
        publish(closing, b"last")
    await eventually(lambda: listener.payloads == [b"last"])


@pytest.mark.parametrize("state", ["available", "frozen", "killed"])
async def test_close_takes_at_most_three_seconds(server: RedisServer, state: str) -> None:
    async with RedisConnection(server.url, prefix="p") as connection:
        publish(connection, b"x" * 10**6)
        if state == "frozen":
            server.freeze()
        elif state == "killed":
            await server.kill()
        closing = monotonic()
    assert monotonic() - closing < 3


@pytest.mark.parametrize("role", ["publisher", "subscriber"])
async def test_tasks_can_be_cancelled_at_any_moment(connections: list[RedisConnection], role: str) -> None:
    connection = connections[0]
    run = connection.publisher.run if role == "publisher" else connection.subscriber.run
    for turns in range(CANCELLATION_TURNS):
        connection.publisher.notify(b"c")
        task = asyncio.create_task(run(connection._redis, lambda: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=15)
        assert task.cancelled(), f"not cancelled after {turns} turns"


async def test_redis_py_is_imported_only_when_it_is_used() -> None:
    code = "import app.bootstrap, sys; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
