"""The pool of prepared sandboxes: adoption, refilling, and removal when the process that created them is gone."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.infrastructure.sandbox.client import running_sandbox
from app.infrastructure.sandbox.docker import reaper
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import EngineSandbox, engine_sandbox, read, run, write
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pooled(engine: EngineSandbox) -> AsyncIterator[DockerSandboxes]:
    """A provider with one sandbox in its pool. Closing it leaves no pooled sandbox behind."""
    async with engine.provider(pool_size=1) as provider:
        yield provider
    assert engine.containers(role="pool", session="") == [] and engine.volumes(role="pool") == []


async def ready_id(provider: DockerSandboxes) -> str:
    """Wait until the provider's pool has a sandbox; return the id of its container."""
    return (await eventually(lambda: provider.pool.ready_ids))[0]


async def test_session_adopts_pooled_sandbox_with_its_workspace(
    engine: EngineSandbox, pooled: DockerSandboxes, provider: DockerSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = await ready_id(pooled)
    before = engine.api.inspect_container(ready)
    assert before["Config"]["Labels"]["anker.session"] == ""
    assert before["Name"].startswith(f"/{engine.prefix}-pool-")
    session = engine.new_session()
    sandbox = await pooled.acquire(session)
    assert sandbox.instance_id == ready == engine.inspect(session)["Id"]
    await write(sandbox, "kept.txt", "still here")
    await eventually(lambda: pooled.pool.ready_ids and pooled.pool.ready_ids != [ready])

    # Another process finds it, the reaper keeps it, and its files survive its container.
    found = await provider.acquire(session)
    assert found.instance_id == ready
    await pooled.reap()
    assert await read(found, "kept.txt") == "still here"
    engine.api.remove_container(ready, force=True)
    monkeypatch.setattr(running_sandbox, "FRESH_SECONDS", 0.0)
    await pooled.reap()
    again = await pooled.acquire(session)
    assert again.instance_id not in (ready, *pooled.pool.ready_ids)
    assert await read(again, "kept.txt") == "still here"

    volumes = {each["Name"] for each in engine.inspect(session)["Mounts"]}
    await pooled.destroy(session)
    assert not engine.has_container(session)
    assert not (volumes | {engine.name(session)}) & set(engine.volumes())


async def test_two_providers_that_adopt_for_one_session_return_the_same_sandbox(
    engine: EngineSandbox, pooled: DockerSandboxes
) -> None:
    async with engine.provider(pool_size=1) as other:
        await asyncio.gather(ready_id(pooled), ready_id(other))
        session = engine.new_session()
        one, two = await asyncio.gather(pooled.acquire(session), other.acquire(session))
        assert one.instance_id == two.instance_id == engine.inspect(session)["Id"]
        await write(one, "same.txt", "x")
        assert await run(two, "cat same.txt") == (0, "x")
        await asyncio.gather(ready_id(pooled), ready_id(other))
        await pooled.destroy(session)
        assert not engine.has_volume(session)


async def test_dead_pooled_sandbox_is_discarded_and_replaced(engine: EngineSandbox, pooled: DockerSandboxes) -> None:
    dead = await ready_id(pooled)
    engine.api.kill(dead)
    session = engine.new_session()
    sandbox = await pooled.acquire(session)
    assert sandbox.instance_id != dead
    await eventually(lambda: dead not in {each["Id"] for each in engine.api.containers(all=True)})
    await pooled.destroy(session)

    dead = await ready_id(pooled)
    engine.api.kill(dead)
    await pooled.reap()
    await eventually(lambda: pooled.pool.ready_ids and pooled.pool.ready_ids != [dead])


async def test_reaper_keeps_pooled_sandbox_of_another_process_until_that_process_is_gone(
    docker_ready: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Uses another part of the engine, because the reaper would also remove the pooled sandboxes of other tests.
    async with engine_sandbox() as engine, engine.provider() as provider, engine.provider(pool_size=1) as other:
        ready = await ready_id(other)
        await provider.reap()
        inspected = engine.api.inspect_container(ready)
        assert inspected["State"]["Running"]
        # The other process is killed: nothing renews the sandbox any more.
        other.pool._ready.clear()
        other.pool._size = 0
        monkeypatch.setattr(reaper, "ABANDONED_SECONDS", 0.5)
        monkeypatch.setattr(reaper, "YOUNG_SECONDS", 0.0)

        async def is_removed() -> bool:
            await provider.reap()
            return engine.containers(role="pool") == [] and engine.volumes(role="pool") == []

        await eventually(is_removed)
