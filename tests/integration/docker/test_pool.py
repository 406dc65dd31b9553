"""Sandboxes that wait: adopted instead of started, made up for behind, and nobody else's business."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.infrastructure.sandbox.docker import life
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.site import Site, run
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def pooled(here: Site) -> AsyncIterator[DockerSandboxes]:
    """A service with one waiting sandbox."""
    async with here.provider(pool_size=1) as provider:
        await eventually(lambda: waiting(provider))
        yield provider
    assert here.containers(role="pool", session="") == [] and here.volumes(role="pool") == []


def waiting(provider: DockerSandboxes) -> list[str]:
    """The ids of the containers that wait."""
    return [life.container.id for life in provider._site.pool._waiting]


async def test_a_session_gets_a_waiting_sandbox_and_another_is_made_behind(
    here: Site, pooled: DockerSandboxes, service: DockerSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready,) = waiting(pooled)
    before = here.api.inspect_container(ready)
    assert before["Config"]["Labels"]["anker.session"] == "" and before["Name"].startswith(f"/{here.prefix}-pool-")
    session = here.session()
    sandbox = await pooled.acquire(session)
    assert sandbox.instance_id == ready == here.inspect(session)["Id"]
    await sandbox.file_write("kept.txt", "still here", append=False, sudo=False)
    await eventually(lambda: waiting(pooled) and waiting(pooled) != [ready])

    # Another process finds it, the reaper lets it be, and its files outlive it like any other's.
    found = await service.acquire(session)
    assert found.instance_id == ready
    await pooled.reap()
    assert await run(found, "cat kept.txt") == (0, "still here")
    here.api.remove_container(ready, force=True)
    monkeypatch.setattr(life, "FRESH_SECONDS", 0.0)
    await pooled.reap()
    again = await pooled.acquire(session)
    assert again.instance_id not in (ready, *waiting(pooled))
    assert await run(again, "cat kept.txt") == (0, "still here")

    volumes = {each["Name"] for each in here.inspect(session)["Mounts"]}
    await pooled.destroy(session)
    assert here.container(session) is None
    assert not (volumes | {here.name(session)}) & set(here.volumes())


async def test_of_two_services_that_adopt_for_one_session_one_wins(here: Site, pooled: DockerSandboxes) -> None:
    async with here.provider(pool_size=1) as other:
        await eventually(lambda: waiting(other))
        session = here.session()
        one, two = await asyncio.gather(pooled.acquire(session), other.acquire(session))
        assert one.instance_id == two.instance_id == here.inspect(session)["Id"]
        await one.file_write("same.txt", "x", append=False, sudo=False)
        assert await run(two, "cat same.txt") == (0, "x")
        await eventually(lambda: waiting(other) and waiting(pooled))
        await pooled.destroy(session)
        assert here.name(session) not in here.volumes()


async def test_a_waiting_sandbox_that_died_is_thrown_away(here: Site, pooled: DockerSandboxes) -> None:
    (dead,) = waiting(pooled)
    here.api.kill(dead)
    session = here.session()
    sandbox = await pooled.acquire(session)
    assert sandbox.instance_id != dead
    await eventually(lambda: dead not in {each["Id"] for each in here.api.containers(all=True)})
    await pooled.destroy(session)

    await eventually(lambda: waiting(pooled))
    (dead,) = waiting(pooled)
    here.api.kill(dead)
    await pooled.reap()
    await eventually(lambda: waiting(pooled) and waiting(pooled) != [dead])


async def test_another_services_waiting_sandbox_is_left_alone_until_its_maker_is_gone(
    here: Site, pooled: DockerSandboxes, service: DockerSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready,) = waiting(pooled)
    await service.reap()
    assert here.api.inspect_container(ready)["State"]["Running"]
    name = here.api.inspect_container(ready)["Name"].removeprefix("/")
    # Its maker is killed, so nobody tells it any more that it is wanted.
    pooled._site.pool._waiting.clear()
    pooled._site.pool._size = 0
    monkeypatch.setattr("app.infrastructure.sandbox.docker.reaper.ABANDONED_SECONDS", 0.5)
    monkeypatch.setattr("app.infrastructure.sandbox.docker.reaper.YOUNG_SECONDS", 0.0)

    async def gone() -> bool:
        await service.reap()
        return name not in here.containers() and name not in here.volumes()

    await eventually(gone)
