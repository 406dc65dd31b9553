"""A sandbox through its lives: found again, lost, idle, destroyed. The engine, its containers and volumes are real."""

import asyncio
import time

import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.site import Site, run, site
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_after_a_restart_of_the_service_files_and_processes_are_still_there(here: Site) -> None:
    session = here.session()
    async with here.provider() as before:
        first = await before.acquire(session)
        await first.file_write("kept.txt", "still here", append=False, sudo=False)
        await first.shell_exec("main", "", "sleep 1001 & echo $!")
        await first.shell_exec("main", "", "word=remembered")
    async with here.provider() as after:
        found = await after.find(session)
        assert found is not None and found.instance_id == first.instance_id == here.inspect(session)["Id"]
        again = await after.acquire(session)
        assert again.instance_id == first.instance_id
        assert (await again.file_read("kept.txt", start=None, end=None, sudo=False)).content == "still here"
        assert (await run(again, "pgrep -f 'sleep 1001' >/dev/null && echo $word")) == (0, "remembered\n")
        await after.destroy(session)


@pytest.mark.parametrize("how", ["kill", "remove_container"])
async def test_a_sandbox_that_was_killed_or_removed_comes_back_with_its_files(
    here: Site, service: DockerSandboxes, how: str
) -> None:
    session = here.session()
    first = await service.acquire(session)
    await first.file_write("kept.txt", "still here", append=False, sudo=False)
    call = asyncio.create_task(first.shell_exec("main", "", "sleep 1002"))
    await eventually(lambda: "sleep 1002" in str(here.api.top(here.name(session))["Processes"]))
    if how == "kill":
        here.api.kill(here.name(session))
    else:
        here.api.remove_container(here.name(session), force=True)
    with pytest.raises(SandboxUnavailable):
        await call
    assert await service.find(session) is None
    second = await service.acquire(session)
    assert second.instance_id != first.instance_id
    assert (await second.file_read("kept.txt", start=None, end=None, sudo=False)).content == "still here"
    assert (await run(second, "pgrep -f 'sleep 1002'"))[0] == 1
    await service.destroy(session)
    assert here.container(session) is None and here.name(session) not in here.volumes()


async def test_a_paused_sandbox_goes_on_where_it_was(here: Site, service: DockerSandboxes) -> None:
    session = here.session()
    first = await service.acquire(session)
    here.api.pause(here.name(session))
    async with here.provider() as other:
        found = await other.acquire(session)
        assert found.instance_id == first.instance_id
        assert await run(found, "echo on") == (0, "on\n")
    await service.destroy(session)


async def test_another_sandbox_at_the_same_address_is_never_taken_for_ones_own(
    here: Site, service: DockerSandboxes
) -> None:
    mine, other = here.session(), here.session()
    lost = await service.acquire(mine)
    address = here.address(mine)
    here.api.remove_container(here.name(mine), force=True)
    # The engine gives the address that became free to the next one.
    async with here.provider() as elsewhere:
        theirs = await elsewhere.acquire(other)
        assert here.address(other) == address
        await theirs.file_write("theirs.txt", "x", append=False, sudo=False)
        with pytest.raises(SandboxUnavailable):
            await lost.file_read("theirs.txt", start=None, end=None, sudo=False)
        new = await service.acquire(mine)
        assert new.instance_id not in (lost.instance_id, theirs.instance_id)
        with pytest.raises(SandboxFailure, match="no such file"):
            await new.file_read("theirs.txt", start=None, end=None, sudo=False)
        await elsewhere.destroy(other)
    await service.destroy(mine)


async def test_an_idle_sandbox_ends_and_its_files_stay(engine: None) -> None:
    # In a place of its own: the other sandboxes rest for longer than a moment.
    async with site() as here, here.provider(ttl_minutes=2 / 60, exec_seconds=0.2) as service:
        session = here.session()
        first = await service.acquire(session)
        await first.file_write("kept.txt", "still here", append=False, sudo=False)
        await first.shell_exec("main", "", "sleep 1003")
        waiting = asyncio.create_task(first.shell_wait("main", 3))
        started = time.monotonic()
        while not waiting.done():
            # Being asked how it is does not count as use, a call under way does.
            await service.reap()
            await first.status()
            assert here.container(session) is not None
            await asyncio.sleep(0.2)
        assert time.monotonic() - started > 2

        async def ended() -> bool:
            await service.reap()
            return here.container(session) is None

        await eventually(ended)
        assert here.name(session) in here.volumes()
        assert await service.find(session) is None
        second = await service.acquire(session)
        assert second.instance_id != first.instance_id
        assert (await second.file_read("kept.txt", start=None, end=None, sudo=False)).content == "still here"
        await service.destroy(session)


async def test_a_sandbox_ends_itself_when_no_service_looks_after_it(
    engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.infrastructure.sandbox.docker.spec.IDLE_MARGIN_SECONDS", 1.0)
    async with site() as here:
        session = here.session()
        async with here.provider(ttl_minutes=1 / 60) as service:
            await service.acquire(session)
        await eventually(lambda: here.inspect(session)["State"]["Status"] == "exited")
        assert here.inspect(session)["State"]["ExitCode"] == 0
        async with here.provider() as service:
            await service.reap()
            assert here.container(session) is None and here.name(session) in here.volumes()
            await service.destroy(session)
        assert here.name(session) not in here.volumes()


async def test_destroying_leaves_nothing_even_while_it_starts_and_when_the_caller_gives_up(
    here: Site, service: DockerSandboxes
) -> None:
    session = here.session()
    waiting = asyncio.create_task(service.acquire(session))
    await eventually(lambda: here.container(session), interval=0.005)
    await asyncio.gather(service.destroy(session), service.destroy(session))
    with pytest.raises(SandboxUnavailable, match="ended while it started"):
        await waiting
    assert here.container(session) is None and here.name(session) not in here.volumes()

    await service.acquire(session)
    caller = asyncio.create_task(service.destroy(session))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await eventually(lambda: here.container(session) is None and here.name(session) not in here.volumes())
    await service.destroy(session)
    await service.destroy("never existed")


async def test_two_services_that_ask_at_once_get_one_sandbox(here: Site, service: DockerSandboxes) -> None:
    session = here.session()
    async with here.provider() as other:
        assert await other.check() is None
        got = await asyncio.gather(*(each.acquire(session) for each in (service, other) for _ in range(5)))
        assert {sandbox.instance_id for sandbox in got} == {here.inspect(session)["Id"]}
        # What one of them does the other sees.
        await got[0].shell_exec("main", "", "echo one > one.txt")
        assert await run(got[-1], "cat one.txt") == (0, "one\n")
        await other.destroy(session)
    with pytest.raises(SandboxUnavailable):
        await run(got[0], "cat one.txt")
    new = await service.acquire(session)
    assert new.instance_id != got[0].instance_id
    await service.destroy(session)


async def test_twenty_that_start_at_once_all_get_theirs_and_leave_nothing(here: Site, service: DockerSandboxes) -> None:
    sessions = [here.session() for _ in range(20)]
    got = await asyncio.gather(*(service.acquire(session) for session in sessions))
    assert len({sandbox.instance_id for sandbox in got}) == 20
    said = await asyncio.gather(*(run(sandbox, f"echo {n}") for n, sandbox in enumerate(got)))
    assert said == [(0, f"{n}\n") for n in range(20)]
    await asyncio.gather(*(service.destroy(session) for session in sessions))
    names = {here.name(session) for session in sessions}
    assert not names & {*here.containers(), *here.volumes()}


async def test_a_sandbox_that_dies_at_its_start_is_removed_and_its_last_words_are_logged(
    here: Site, caplog: pytest.LogCaptureFixture
) -> None:
    session = here.session()
    async with here.provider(exec_seconds=1e6) as service:
        with pytest.raises(SandboxUnavailable, match="did not start") as caught:
            await service.acquire(session)
    assert "SANDBOX_EXEC_SECONDS" not in str(caught.value)
    assert "SANDBOX_EXEC_SECONDS" in caplog.text
    assert here.container(session) is None


async def test_what_the_engine_cannot_do_is_told_in_words_and_leaves_no_container(here: Site) -> None:
    for changes, words in (
        ({"image": "anker-test/no-such-image"}, "SANDBOX_IMAGE"),
        ({"runtime": "no-such-runtime"}, "SANDBOX_RUNTIME"),
        ({"cpus": 4096}, "SANDBOX_CPUS"),
    ):
        session = here.session()
        async with here.provider(**changes) as service:
            with pytest.raises(SandboxUnavailable, match=words):
                await service.acquire(session)
            if "image" in changes:
                assert "SANDBOX_IMAGE" in (await service.check() or "")
        assert here.container(session) is None


async def test_a_closed_service_gives_no_sandbox(here: Site) -> None:
    service = here.provider()
    async with service:
        pass
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await service.acquire(here.session())
    service.warm(here.session())
    assert await service.find(here.session()) is None
    await service.close()
