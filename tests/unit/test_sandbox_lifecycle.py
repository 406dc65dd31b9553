"""The lifecycle that local and Docker sandboxes share, on a backend without processes."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox import lifecycle
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.running_sandbox import FRESH_SECONDS, RENEW_SECONDS, RunningSandbox
from app.infrastructure.sandbox.lifecycle import SessionSandboxProvider

SHELL = {"session_id": "x", "status": "completed", "returncode": 0, "output": ""}
FILE = {"content": "text", "line_count": 1, "file": "/f"}


class Instance(RunningSandbox):
    """An instance with a scripted response and a clock that only `clock` moves."""

    def __init__(self, instance_id: str = "i1") -> None:
        self.clock = 100.0
        self.status: dict[str, object] | None = {"shell": {"ready": True}, "idle_seconds": 0}
        self.requests: list[str] = []
        self.is_alive = True
        self.is_closed = False
        self.failure: Exception | None = None
        """What every call but that of the status raises."""
        api = SandboxApiClient("http://sandbox", "token", transport=httpx.MockTransport(self._respond))
        super().__init__(api, instance_id=instance_id, exec_seconds=1, clock=lambda: self.clock)

    async def close(self) -> None:
        self.is_closed = True
        await super().close()

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1/")
        self.requests.append(path)
        if self.status is None:
            raise httpx.ConnectError("refused")
        if self.failure is not None and path != "status":
            raise self.failure
        if path == "shell/exec":
            return httpx.Response(200, json={"success": True, "message": "", "data": SHELL})
        if path == "file/read":
            return httpx.Response(200, json={"success": True, "message": "", "data": FILE})
        return httpx.Response(200, json={"success": True, "message": "", "data": self.status})


class Backend:
    """A `SandboxBackend` in memory, which records what it is told to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.error: Exception | None = None
        self.count = 0

    async def is_alive(self, known: Instance) -> bool:
        return known.is_alive

    async def find_end(self, known: Instance) -> str | None:
        return None if known.is_alive else "ran out of memory"

    async def find(self, session_id: str, known: Instance | None) -> Instance | None:
        self.calls.append("find")
        if self.error:
            raise self.error
        return known if known is not None and known.is_alive else None

    async def start(self, session_id: str, known: Instance | None) -> Instance:
        if known is not None and known.is_alive:
            return known
        self.calls.append("start")
        await self.may_start.wait()
        if self.error:
            raise self.error
        self.count += 1
        return Instance(f"i{self.count}")

    async def stop(self, session_id: str, instance_id: str) -> None:
        self.calls.append(f"stop {instance_id}")

    async def destroy(self, session_id: str) -> None:
        self.calls.append("destroy")
        await self.may_start.wait()
        if self.error:
            raise self.error


class Provider(SessionSandboxProvider[Instance]):
    """A provider that reaps nothing."""

    async def start(self) -> None:
        return None

    async def reap(self) -> None:
        return None


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest_asyncio.fixture
async def provider(backend: Backend) -> AsyncIterator[Provider]:
    async with Provider(backend) as provider:
        yield provider


async def yes() -> bool:
    return True


def running(provider: Provider) -> Instance:
    instance = provider.session("s1").running
    assert instance is not None
    return instance


async def test_acquire_while_starting_shares_the_start(provider: Provider, backend: Backend) -> None:
    provider.warm("s1")
    sandboxes = await asyncio.gather(*(provider.acquire("s1") for _ in range(3)))
    assert backend.calls == ["start"]
    found = await provider.find("s1")
    assert found is not None and {each.instance_id for each in (*sandboxes, found)} == {"i1"}


async def test_cancelled_acquire_does_not_end_the_start_for_other_callers(provider: Provider, backend: Backend) -> None:
    backend.may_start.clear()
    cancelled, waiting = (asyncio.create_task(provider.acquire("s1")) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    backend.may_start.set()
    assert (await waiting).instance_id == "i1"


async def test_failed_start_fails_all_callers_and_the_next_acquire_tries_again(
    provider: Provider, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = SandboxUnavailable("no memory")
    outcomes = await asyncio.gather(*(provider.acquire("s1") for _ in range(2)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no memory", "no memory"]
    assert caplog.text.count("no memory") == 1 and "Traceback" not in caplog.text
    backend.error = None
    assert (await provider.acquire("s1")).instance_id == "i1"


async def test_acquire_of_an_ended_instance_starts_a_new_one_and_closes_the_old(provider: Provider) -> None:
    await provider.acquire("s1")
    old = running(provider)
    old.is_alive = False
    assert (await provider.acquire("s1")).instance_id == "i2"
    assert old.is_closed and not running(provider).is_closed


async def test_find_returns_none_and_keeps_nothing_for_a_session_without_sandbox(provider: Provider) -> None:
    assert await provider.find("s1") is None
    assert provider.sessions == {}


async def test_find_during_a_start_does_not_wait_for_its_end(
    provider: Provider, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "FIND_SECONDS", 0.01)
    backend.may_start.clear()
    provider.warm("s1")
    assert await provider.find("s1") is None
    backend.may_start.set()
    await provider.acquire("s1")
    assert await provider.find("s1") is not None


async def test_failed_find_keeps_the_connection_that_others_use(provider: Provider, backend: Backend) -> None:
    await provider.acquire("s1")
    known = running(provider)
    known.is_alive, backend.error = False, SandboxUnavailable("the engine is away")
    with pytest.raises(SandboxUnavailable, match="engine"):
        await provider.find("s1")
    assert running(provider) is known and not known.is_closed


async def test_destroy_during_a_start_cancels_the_start(provider: Provider, backend: Backend) -> None:
    backend.may_start.clear()
    waiting = asyncio.create_task(provider.acquire("s1"))
    await asyncio.sleep(0)
    removal = asyncio.create_task(provider.destroy("s1"))
    with pytest.raises(SandboxUnavailable, match="ended while it started"):
        await waiting
    backend.may_start.set()
    await removal
    assert backend.calls[-1] == "destroy" and provider.sessions == {}


async def test_destroy_with_cancelled_caller_is_completed(provider: Provider, backend: Backend) -> None:
    await provider.acquire("s1")
    instance = running(provider)
    backend.may_start.clear()
    caller = asyncio.create_task(provider.destroy("s1"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    backend.may_start.set()
    await provider.close()
    assert backend.calls == ["start", "destroy"] and instance.is_closed


async def test_failed_destroy_is_logged(provider: Provider, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    backend.error = SandboxUnavailable("the engine is away")
    await provider.destroy("s1")
    assert "will be removed later: the engine is away" in caplog.text


async def test_stop_if_idle_stops_the_instance(provider: Provider, backend: Backend) -> None:
    await provider.acquire("s1")
    instance = running(provider)
    assert await provider.session("s1").stop_if_idle("i1", yes)
    assert instance.is_closed and backend.calls[-1] == "stop i1"
    provider.drop_empty_sessions()
    assert provider.sessions == {}


async def test_stop_if_idle_of_an_instance_in_use_does_nothing(provider: Provider, backend: Backend) -> None:
    async def no() -> bool:
        return False

    await provider.acquire("s1")
    assert not await provider.session("s1").stop_if_idle("i1", no)
    assert not running(provider).is_closed and backend.calls == ["start"]


async def test_forget_of_an_earlier_instance_keeps_the_current_one(provider: Provider) -> None:
    await provider.acquire("s1")
    await provider.session("s1").forget("i0")
    assert not running(provider).is_closed
    await provider.session("s1").forget("i1")
    assert provider.session("s1").running is None


async def test_closed_provider_closes_sandboxes_and_starts_none(provider: Provider, backend: Backend) -> None:
    await provider.acquire("s1")
    instance = running(provider)
    await provider.close()
    assert instance.is_closed
    provider.warm("s1")
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await provider.acquire("s1")
    assert await provider.find("s1") is None and backend.calls == ["start"]


async def test_reaper_goes_on_after_errors(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    errors = iter([SandboxUnavailable("the engine is away"), RuntimeError("a bug"), None])
    reaped = asyncio.Event()

    async def reap() -> None:
        if (error := next(errors)) is not None:
            raise error
        reaped.set()
        await asyncio.Event().wait()

    provider.reap = reap  # type: ignore[method-assign]
    provider.start_reaper(0)
    await asyncio.wait_for(reaped.wait(), 5)
    assert "not stopped now: the engine is away" in caplog.text and "RuntimeError: a bug" in caplog.text


async def test_idle_seconds_are_zero_during_a_call() -> None:
    instance = Instance()
    instance.clock += 7
    assert instance.idle_seconds == 7
    with instance:
        assert instance.idle_seconds == 0
    assert instance.idle_seconds == 0
    instance.clock += 3
    assert instance.idle_seconds == 3
    instance.touch()
    assert instance.idle_seconds == 0


async def test_response_and_refusal_make_an_instance_fresh_and_a_broken_call_unresponsive() -> None:
    instance = Instance()
    assert instance.is_unresponsive and not instance.is_fresh
    for error in (None, SandboxFailure("no such file")):
        with instance:
            pass
        if error is not None:
            with pytest.raises(SandboxFailure), instance:
                raise error
        assert instance.is_fresh
        instance.clock += FRESH_SECONDS
        assert not instance.is_fresh and not instance.is_unresponsive
    with pytest.raises(SandboxUnavailable), instance:
        raise SandboxUnavailable("the connection broke")
    assert instance.is_unresponsive


async def test_is_ready_needs_a_response_with_a_working_shell() -> None:
    instance = Instance()
    assert await instance.is_ready() and instance.is_fresh
    instance.status = {"shell": {"ready": False, "reason": "starting"}}
    assert not await instance.is_ready()
    instance.status = None
    assert not await instance.is_ready() and instance.is_unresponsive


@pytest.mark.parametrize(("idle", "renewed"), [(0, False), (RENEW_SECONDS + 1, True), (None, True)])
async def test_try_renew_reports_use_only_to_an_instance_idle_for_long(idle: float | None, renewed: bool) -> None:
    instance = Instance()
    instance.status = {"shell": {"ready": True}} if idle is None else {"idle_seconds": idle}
    assert await instance.try_renew() and instance.is_fresh
    assert instance.requests == ["status", *(["shell/kill_all"] if renewed else [])]
    instance.status = None
    assert not await instance.try_renew() and instance.is_unresponsive


def end(instance: Instance, failure: Exception) -> None:
    instance.is_alive, instance.failure = False, failure


async def test_call_that_never_reached_its_sandbox_is_made_on_a_new_one(provider: Provider, backend: Backend) -> None:
    sandbox = await provider.acquire("s1")
    end(running(provider), httpx.ConnectError("refused"))
    assert (await sandbox.shell_exec("x", "", "ls")).returncode == 0
    assert sandbox.instance_id == "i2" and backend.calls == ["start", "start"]
    assert running(provider).requests == ["shell/exec"]


async def test_command_that_a_dying_sandbox_may_have_run_is_not_repeated(provider: Provider, backend: Backend) -> None:
    sandbox = await provider.acquire("s1")
    end(running(provider), httpx.ReadError("reset"))
    reasons = await asyncio.gather(*(sandbox.shell_exec("x", "", "ls") for _ in range(3)), return_exceptions=True)
    assert {str(each).partition(" during")[0] for each in reasons} == {"The sandbox ran out of memory"}
    assert backend.calls == ["start"]
    assert (await provider.acquire("s1")).instance_id == "i2"


async def test_reading_call_on_a_dying_sandbox_is_repeated(provider: Provider) -> None:
    sandbox = await provider.acquire("s1")
    end(running(provider), httpx.ReadError("reset"))
    text = await sandbox.file_read("/f", start=None, end=None, sudo=False)
    assert text.content == "text" and sandbox.instance_id == "i2"


async def test_broken_connection_to_a_living_sandbox_is_reported(provider: Provider, backend: Backend) -> None:
    sandbox = await provider.acquire("s1")
    running(provider).failure = httpx.ReadError("reset")
    with pytest.raises(SandboxUnavailable, match="broke before it answered"):
        await sandbox.file_read("/f", start=None, end=None, sudo=False)
    assert backend.calls == ["start"]


async def test_found_sandbox_that_ends_is_not_replaced(provider: Provider, backend: Backend) -> None:
    await provider.acquire("s1")
    found = await provider.find("s1")
    end(running(provider), httpx.ConnectError("refused"))
    assert found is not None
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await found.file_read("/f", start=None, end=None, sudo=False)
    assert backend.calls == ["start"]


async def test_call_after_destruction_starts_no_sandbox(provider: Provider, backend: Backend) -> None:
    sandbox = await provider.acquire("s1")
    end(running(provider), httpx.ConnectError("refused"))
    await provider.destroy("s1")
    with pytest.raises(SandboxUnavailable):
        await sandbox.shell_exec("x", "", "ls")
    assert backend.calls == ["start", "destroy"]


async def test_sandbox_with_a_fault_of_its_own_is_checked_before_its_next_use(provider: Provider) -> None:
    await provider.acquire("s1")
    instance = running(provider)
    with pytest.raises(SandboxFailure), instance:
        raise SandboxFailure("the shell could not be started", status=500)
    assert instance.is_unresponsive
