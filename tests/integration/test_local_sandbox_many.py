"""Local sandboxes of several services, each a process of its own, that share a data folder."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox import holding
from app.infrastructure.sandbox.local import LocalSandboxes
from tests.integration.local_services import service
from tests.integration.sandbox_processes import STRAYS, astray, commands, kill_service, marked, services
from tests.support.eventually import eventually


def files(data_dir: Path) -> set[str]:
    """What there is of sessions, and of who has them; not that some were deleted."""
    root = data_dir / "sandboxes"
    found = (*root.glob("*"), *(root / ".running").glob("*"))
    return {path.name for path in found if path.suffix != ".gone" and path.name != ".running"}


async def test_what_one_service_has_started_another_finds_and_uses(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        assert await second.find("s1") is None
        computer = await first.acquire("s1")
        await first.run("s1", "echo of the first")
        assert await second.find("s1") == computer
        assert "of the first" in str(await second.ask("view", "s1"))
        assert await second.acquire("s1") == computer
        await second.run("s1", "echo of the second")
        assert "of the second" in str(await first.ask("view", "s1"))
        assert len(services(tmp_path)) == 1


async def test_services_that_ask_at_once_share_one_sandbox(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second, service(tmp_path) as third:
        for session in ("s1", "s2", "s3"):
            asked = [each.acquire(session) for each in (first, second, third) for _ in range(2)]
            assert len(set(await asyncio.gather(*asked))) == 1
            assert len(services(tmp_path, session)) == 1


async def test_only_the_owner_can_read_how_a_sandbox_is_reached(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        await provider.acquire("s1")
        folder = tmp_path / "sandboxes" / ".running"
        assert {path.name for path in folder.iterdir()} == {"s1.lock", "s1.json"}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "s1.json").stat().st_mode) == 0o600
    assert files(tmp_path) == {"s1"}


async def test_when_a_maker_is_killed_the_next_who_asks_starts_a_new_sandbox(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        old = await first.acquire("s1")
        await first.begin("s1", "echo kept > a.txt; " + STRAYS)
        await astray(tmp_path)
        await second.acquire("s1")
        await first.kill()
        new = await second.acquire("s1")
        assert new != old
        assert commands(marked(tmp_path)).count("sleep 1000") == 0
        assert len(services(tmp_path)) == 1
        assert await second.run("s1", "cat a.txt") == "kept\n"


async def test_a_call_on_the_sandbox_of_a_maker_that_is_killed_ends(tmp_path: Path) -> None:
    async with service(tmp_path, exec_seconds=30) as first, service(tmp_path, exec_seconds=30) as second:
        await first.acquire("s1")
        await second.acquire("s1")
        call = asyncio.create_task(second.run("s1", "sleep 1001"))
        await eventually(lambda: "sleep 1001" in commands(marked(tmp_path)))
        await first.kill()
        async with asyncio.timeout(15):  # half of what the call would take
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
        # The sandbox may still have told that the command was ended.
        assert isinstance(outcome, SandboxUnavailable | str)


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1, 0.3])
async def test_a_maker_that_is_killed_while_it_starts_a_sandbox_blocks_nobody(tmp_path: Path, seconds: float) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        start = asyncio.create_task(first.acquire("s1"))
        await eventually(lambda: (tmp_path / "sandboxes" / "s1").exists())
        await asyncio.wait({start}, timeout=seconds)
        await first.kill()
        await asyncio.wait({start})
        start.exception()
        async with asyncio.timeout(30):
            await second.acquire("s1")
        await eventually(lambda: len(services(tmp_path)) == 1)
        assert await second.run("s1", "echo hi") == "hi\n"


async def test_a_maker_that_ends_in_order_ends_its_own_only_and_the_others_go_on(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        old = await first.acquire("s1")
        await first.run("s1", "echo kept > a.txt")
        assert await second.acquire("s1") == old
        others = await second.acquire("s2")
        await first.end()
        with pytest.raises(SandboxUnavailable):
            await second.run("s1", "true")
        assert await second.find("s1") is None
        assert await second.find("s2") == others
        assert await second.acquire("s1") != old
        assert await second.run("s1", "cat a.txt") == "kept\n"


async def test_a_sandbox_that_dies_is_started_anew_by_whoever_asks(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        old = await first.acquire("s1")
        await second.acquire("s1")
        await second.begin("s1", STRAYS)
        await astray(tmp_path)
        await kill_service(tmp_path)
        new = await second.acquire("s1")
        assert new != old and await first.acquire("s1") == new
        assert "sleep 1000" not in commands(marked(tmp_path))


async def test_destroy_ends_a_sandbox_that_another_service_has_made(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        old = await first.acquire("s1")
        await first.begin("s1", "echo x > a.txt; " + STRAYS)
        await astray(tmp_path)
        await second.ask("destroy", "s1")
        assert commands(marked(tmp_path)) == [] and files(tmp_path) == set()
        with pytest.raises(SandboxUnavailable):
            await first.run("s1", "true")
        assert await first.find("s1") is None
        assert await first.acquire("s1") != old
        assert await first.run("s1", "ls") == ""


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1, 0.3])
async def test_destroy_ends_a_start_that_is_under_way_in_another_service(tmp_path: Path, seconds: float) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        start = asyncio.create_task(first.acquire("s1"))
        await eventually(lambda: "s1.lock" in files(tmp_path))
        await asyncio.wait({start}, timeout=seconds)
        await second.ask("destroy", "s1")
        await asyncio.wait({start})
        assert start.exception() is None or isinstance(start.exception(), SandboxUnavailable)
        assert commands(marked(tmp_path)) == [] and files(tmp_path) == set()
        assert await first.find("s1") is None


async def test_destroy_ends_a_start_that_waits_for_its_turn_in_another_service(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, starts_at_once=1) as first, LocalSandboxes(tmp_path) as second:
        async with (gate := first._site.gate):
            start = asyncio.create_task(first.acquire("s1"))
            await eventually(lambda: gate._waiters)
            await second.destroy("s1")
        with pytest.raises(SandboxUnavailable, match="ended while it started"):
            await start
        assert files(tmp_path) == set()
        await first.acquire("s1")


async def test_both_may_destroy_at_once(tmp_path: Path) -> None:
    async with service(tmp_path) as first, service(tmp_path) as second:
        await first.acquire("s1")
        await asyncio.gather(first.ask("destroy", "s1"), second.ask("destroy", "s1"))
        assert commands(marked(tmp_path)) == [] and files(tmp_path) == set()


async def test_a_service_that_starts_leaves_the_sandboxes_and_folders_of_others_alone(tmp_path: Path) -> None:
    async with service(tmp_path) as first:
        computer = await first.acquire("s1")
        await first.begin("s1", STRAYS)
        await astray(tmp_path)
        (tmp_path / "sandboxes" / "gone" / "workspace").mkdir(parents=True)
        async with service(tmp_path) as second:
            assert await second.ask("sweep") == 1
            assert await second.find("s1") == computer
        assert files(tmp_path) == {"s1", "s1.lock", "s1.json"}
        await astray(tmp_path)
        assert await first.find("s1") == computer
        assert await first.ask("view", "s1")


async def test_use_by_another_service_keeps_a_sandbox_from_being_idle(tmp_path: Path) -> None:
    async with (
        service(tmp_path, ttl_seconds=0.3, exec_seconds=30) as first,
        service(tmp_path, exec_seconds=30) as second,
    ):
        computer = await first.acquire("s1")
        await second.acquire("s1")
        waits = "echo > begun; until [ -e go ]; do sleep 0.05; done; echo done"
        workspace = tmp_path / "sandboxes" / "s1" / "workspace"
        call = asyncio.create_task(second.run("s1", waits))
        await eventually(lambda: (workspace / "begun").exists())
        for _ in range(10):
            assert await first.ask("expire") == 0
            await asyncio.wait({call}, timeout=0.1)
        (workspace / "go").touch()
        assert await call == "done\n"
        async with asyncio.timeout(30):
            while not await first.ask("expire"):
                await asyncio.sleep(0.02)
        assert await second.find("s1") is None
        assert await second.acquire("s1") != computer


async def test_a_record_that_makes_no_sense_blocks_nobody(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        (tmp_path / "sandboxes" / ".running").mkdir(exist_ok=True)
        (tmp_path / "sandboxes" / ".running" / "s1.json").write_text('{"session_id": ')
        (tmp_path / "sandboxes" / ".running" / "s1.lock").touch()
        assert await provider.find("s1") is None
        sandbox = await provider.acquire("s1")
        assert (await sandbox.shell_exec("main", "", "echo hi")).output == "hi\n"


async def test_destroy_does_not_wait_for_a_maker_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "SEIZE_SECONDS", 0.3)
    async with service(tmp_path) as first, LocalSandboxes(tmp_path) as second:
        await first.acquire("s1")
        await first.begin("s1", STRAYS)
        await astray(tmp_path)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            await second.acquire("s1")
            await second.destroy("s1")
            assert commands(marked(tmp_path)) == [] and files(tmp_path) == {"s1.lock", "s1.json"}
            assert await second.find("s1") is None
        finally:
            os.kill(first.pid, signal.SIGCONT)
        await eventually(lambda: files(tmp_path) == set())
        assert await first.acquire("s1")
