"""The lifecycle of a session's sandbox on a real engine: found again, lost, idle, destroyed."""

import asyncio
import itertools
import time

import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.docker import container_spec
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import EngineSandbox, engine_sandbox, read, run, write
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_restarted_service_finds_sandbox_with_files_and_processes(engine: EngineSandbox) -> None:
    session = engine.new_session()
    async with engine.provider() as before:
        first = await before.acquire(session)
        await write(first, "kept.txt", "still here")
        await first.shell_exec("main", "", "sleep 1001 & echo $!")
        await first.shell_exec("main", "", "word=remembered")
    async with engine.provider() as after:
        found = await after.find(session)
        assert found is not None and found.instance_id == first.instance_id == engine.inspect(session)["Id"]
        again = await after.acquire(session)
        assert again.instance_id == first.instance_id
        assert await read(again, "kept.txt") == "still here"
        assert (await run(again, "pgrep -f 'sleep 1001' >/dev/null && echo $word")) == (0, "remembered\n")
        await after.destroy(session)


@pytest.mark.parametrize("how", ["kill", "remove"])
async def test_killed_or_removed_container_is_replaced_with_its_files(
    engine: EngineSandbox, provider: DockerSandboxes, how: str
) -> None:
    session = engine.new_session()
    first = await provider.acquire(session)
    await write(first, "kept.txt", "still here")
    call = asyncio.create_task(first.shell_exec("main", "", "sleep 1002"))
    await eventually(lambda: "sleep 1002" in str(engine.api.top(engine.name(session))["Processes"]))
    if how == "kill":
        engine.api.kill(engine.name(session))
    else:
        engine.api.remove_container(engine.name(session), force=True)
    reason = "was removed" if how == "remove" else "ended with status 137"
    with pytest.raises(SandboxUnavailable, match=f"The sandbox {reason} during this call, which may have taken effect"):
        await call
    assert await provider.find(session) is None
    second = await provider.acquire(session)
    assert second.instance_id != first.instance_id
    assert await read(second, "kept.txt") == "still here"
    assert (await run(second, "pgrep -f 'sleep 1002'"))[0] == 1
    await provider.destroy(session)
    assert not engine.has_container(session) and not engine.has_volume(session)


async def test_call_right_after_the_removal_is_made_on_a_new_sandbox(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    session = engine.new_session()
    first = await provider.acquire(session)
    for number in range(2):
        instance = first.instance_id
        await write(first, "kept.txt", f"version {number}")
        engine.api.remove_container(engine.name(session), force=True)
        sandbox = await provider.acquire(session)  # not checked, because it responded a moment ago
        assert sandbox.instance_id == instance
        if number == 0:
            assert await read(sandbox, "kept.txt") == "version 0"
        else:
            assert await run(sandbox, "cat kept.txt") == (0, "version 1")
        assert sandbox.instance_id != instance
        first = sandbox
    await provider.destroy(session)


FILL = """
import os
while True:
    try:
        child = os.fork()
    except OSError:
        break
    if child == 0:
        os.setsid()
        os.execve("/bin/sleep", ["sleep", "1000"], {})
"""


async def test_sandbox_full_of_processes_is_replaced_with_its_files(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    session = engine.new_session()
    full = await provider.acquire(session)
    await write(full, "fill.py", FILL)
    await run(full, "python3 fill.py")
    with pytest.raises(SandboxFailure, match="limit of processes"):
        await full.shell_exec("other", "", "true")
    replaced = await provider.acquire(session)
    assert replaced.instance_id != full.instance_id
    assert await read(replaced, "fill.py") == FILL
    assert (await run(replaced, "pgrep -c sleep"))[1] == "0\n"
    await provider.destroy(session)


@pytest.mark.parametrize("bomb", ["for i in $(seq 2000); do sleep 500 & done; wait", "bomb() { bomb | bomb & }; bomb"])
async def test_sandbox_full_of_processes_of_a_shell_works_again_once_the_shell_is_killed(
    engine: EngineSandbox, provider: DockerSandboxes, bomb: str
) -> None:
    session = engine.new_session()
    sandbox = await provider.acquire(session)
    await sandbox.shell_exec("bomb", "", bomb)

    async def is_refused() -> bool:
        try:
            await sandbox.shell_exec(f"other{next(numbers)}", "", "true")
        except SandboxFailure as failure:
            assert "limit of processes" in str(failure) and "shell_kill_process" in str(failure), failure
            return True
        return False

    numbers = itertools.count()
    await eventually(is_refused)
    assert (await sandbox.status())["shell"].ready
    same = await provider.acquire(session)
    assert same.instance_id == sandbox.instance_id
    await same.shell_kill("bomb")
    assert await run(same, "pgrep -c -f 'sleep 500|bomb' || true") == (0, "0\n")
    assert (await same.shell_exec("other0", "", "echo on")).output == "on\n"
    await provider.destroy(session)


async def test_paused_sandbox_is_resumed(engine: EngineSandbox, provider: DockerSandboxes) -> None:
    session = engine.new_session()
    first = await provider.acquire(session)
    engine.api.pause(engine.name(session))
    async with engine.provider() as other:
        found = await other.acquire(session)
        assert found.instance_id == first.instance_id
        assert await run(found, "echo on") == (0, "on\n")
    await provider.destroy(session)


async def test_sandbox_that_gets_the_address_of_another_is_not_mistaken_for_it(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    mine, other = engine.new_session(), engine.new_session()
    lost = await provider.acquire(mine)
    address = engine.address(mine)
    engine.api.remove_container(engine.name(mine), force=True)
    # The engine gives the address to the next container.
    async with engine.provider() as elsewhere:
        theirs = await elsewhere.acquire(other)
        assert engine.address(other) == address
        await write(theirs, "theirs.txt", "x")
        known = lost.instance_id
        with pytest.raises(SandboxFailure, match="no such file"):
            await read(lost, "theirs.txt")
        assert lost.instance_id not in (known, theirs.instance_id)
        await elsewhere.destroy(other)
    await provider.destroy(mine)


async def test_idle_sandbox_is_stopped_and_its_files_stay(docker_ready: None) -> None:
    # Uses another part of the engine, because the reaper would also stop the sandboxes of other tests.
    async with engine_sandbox() as engine, engine.provider(ttl_minutes=1 / 60, exec_seconds=0.2) as provider:
        session = engine.new_session()
        first = await provider.acquire(session)
        await write(first, "kept.txt", "still here")
        await first.shell_exec("main", "", "sleep 1003")
        call = asyncio.create_task(first.shell_wait("main", 2))
        started = time.monotonic()
        while not call.done():
            # The call counts as use; asking for the status does not.
            await provider.reap()
            await first.status()
            assert engine.has_container(session)
            await asyncio.sleep(0.2)
        assert time.monotonic() - started > 1.5

        async def is_stopped() -> bool:
            await provider.reap()
            return not engine.has_container(session)

        await eventually(is_stopped)
        assert engine.has_volume(session)
        assert await provider.find(session) is None
        second = await provider.acquire(session)
        assert second.instance_id != first.instance_id
        assert await read(second, "kept.txt") == "still here"
        await provider.destroy(session)


async def test_sandbox_ends_itself_when_no_service_runs(docker_ready: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_spec, "IDLE_MARGIN_SECONDS", 1.0)
    async with engine_sandbox() as engine:
        session = engine.new_session()
        async with engine.provider(ttl_minutes=1 / 60) as provider:
            await provider.acquire(session)
        await eventually(lambda: engine.inspect(session)["State"]["Status"] == "exited")
        assert engine.inspect(session)["State"]["ExitCode"] == 0
        async with engine.provider() as provider:
            await provider.reap()
            assert not engine.has_container(session) and engine.has_volume(session)
            await provider.destroy(session)
        assert not engine.has_volume(session)


async def test_destroy_during_start_removes_everything(engine: EngineSandbox, provider: DockerSandboxes) -> None:
    session = engine.new_session()
    start = asyncio.create_task(provider.acquire(session))
    await eventually(lambda: engine.has_container(session))
    await asyncio.gather(provider.destroy(session), provider.destroy(session))
    with pytest.raises(SandboxUnavailable, match="ended while it started"):
        await start
    assert not engine.has_container(session) and not engine.has_volume(session)
    await provider.destroy("never existed")


async def test_destroy_with_cancelled_caller_removes_everything(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    session = engine.new_session()
    await provider.acquire(session)
    caller = asyncio.create_task(provider.destroy(session))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await eventually(lambda: not engine.has_container(session) and not engine.has_volume(session))


async def test_concurrent_acquires_in_two_processes_return_one_sandbox(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    session = engine.new_session()
    async with engine.provider() as other:
        assert await other.check() is None
        acquired = await asyncio.gather(*(each.acquire(session) for each in (provider, other) for _ in range(5)))
        assert {sandbox.instance_id for sandbox in acquired} == {engine.inspect(session)["Id"]}
        await acquired[0].shell_exec("main", "", "echo one > one.txt")
        assert await run(acquired[-1], "cat one.txt") == (0, "one\n")
        await other.destroy(session)
    assert (await run(acquired[0], "cat one.txt"))[0] == 1  # on a new sandbox with a new workspace
    await provider.destroy(session)


async def test_more_sandboxes_than_may_start_at_once_all_start(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    sessions = [engine.new_session() for _ in range(10)]
    acquired = await asyncio.gather(*(provider.acquire(session) for session in sessions))
    assert len({sandbox.instance_id for sandbox in acquired}) == len(sessions)
    outputs = await asyncio.gather(*(run(sandbox, f"echo {n}") for n, sandbox in enumerate(acquired)))
    assert outputs == [(0, f"{n}\n") for n in range(len(sessions))]
    await asyncio.gather(*(provider.destroy(session) for session in sessions))
    names = {engine.name(session) for session in sessions}
    assert not names & {*engine.containers(), *engine.volumes()}


async def test_sandbox_that_exits_at_start_is_removed_and_its_output_logged(
    engine: EngineSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    session = engine.new_session()
    async with engine.provider(exec_seconds=1e6) as provider:
        with pytest.raises(SandboxUnavailable, match="did not start") as raised:
            await provider.acquire(session)
    assert "SANDBOX_EXEC_SECONDS" not in str(raised.value)
    assert "SANDBOX_EXEC_SECONDS" in caplog.text
    assert not engine.has_container(session)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"image": "anker-test/no-such-image"}, "SANDBOX_IMAGE"),
        ({"runtime": "no-such-runtime"}, "SANDBOX_RUNTIME"),
        ({"cpus": 4096}, "SANDBOX_CPUS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_option_that_the_engine_refuses_is_named_and_leaves_no_container(
    engine: EngineSandbox, changes: dict[str, object], setting: str
) -> None:
    session = engine.new_session()
    async with engine.provider(**changes) as provider:
        with pytest.raises(SandboxUnavailable, match=setting):
            await provider.acquire(session)
        if setting == "SANDBOX_IMAGE":
            assert setting in (await provider.check() or "")
    assert not engine.has_container(session)


async def test_closed_provider_returns_no_sandbox(engine: EngineSandbox) -> None:
    async with engine.provider() as provider:
        pass
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await provider.acquire(engine.new_session())
    provider.warm(engine.new_session())
    assert await provider.find(engine.new_session()) is None
    await provider.close()
