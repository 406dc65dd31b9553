"""The reaper removes objects that no session needs, and never touches the objects of others."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from docker.errors import NotFound

from app.domain.errors import StoreUnavailable
from app.infrastructure.sandbox.docker import reaper
from app.infrastructure.sandbox.docker.network.egress import bridge_name
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import IMAGE, EngineSandbox

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextmanager
def container_and_volume(engine: EngineSandbox, name: str, labels: dict[str, str]) -> Iterator[None]:
    """Create a container that ends at once, and a volume, with this name and these labels."""
    engine.api.create_volume(name, labels=labels)
    made = engine.api.create_container(IMAGE, entrypoint=["/bin/true"], name=name, labels=labels)["Id"]
    engine.api.start(made)
    engine.api.wait(made)
    try:
        yield
    finally:
        with suppress(NotFound):
            engine.api.remove_container(made, force=True)
        with suppress(NotFound):
            engine.api.remove_volume(name)


def existing(engine: EngineSandbox, name: str) -> tuple[bool, bool]:
    """Return whether a container and a volume of this name exist, with any owner."""
    containers = engine.api.containers(all=True, filters={"name": f"^/{name}$"})
    volumes = engine.api.volumes({"name": name})["Volumes"] or []
    return bool(containers), any(each["Name"] == name for each in volumes)


async def test_sandbox_of_deleted_session_is_removed_and_others_stay(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    kept, deleted, ended = engine.new_session(), engine.new_session(), engine.new_session()
    await asyncio.gather(*(provider.acquire(session) for session in (kept, deleted, ended)))
    engine.api.kill(engine.name(ended))
    engine.sessions.discard(deleted)
    await provider.reap()
    assert existing(engine, engine.name(deleted)) == (False, False)
    assert existing(engine, engine.name(kept)) == (True, True) and engine.inspect(kept)["State"]["Running"]
    # Only the files of a sandbox that has ended are kept.
    assert existing(engine, engine.name(ended)) == (False, True)
    for session in (kept, ended):
        await provider.destroy(session)


async def test_store_is_asked_only_for_sessions_with_objects(engine: EngineSandbox) -> None:
    asked: list[str] = []

    async def record(session_ids: Sequence[str]) -> list[str]:
        asked.extend(session_ids)
        return list(session_ids)

    created, adopted, unused = engine.new_session(), engine.new_session(), engine.new_session()
    pointer = {"anker.installation": engine.installation, "anker.session": adopted, "anker.volume": "elsewhere"}
    async with engine.provider(existing=record) as provider:
        await provider.acquire(created)
        engine.api.create_volume(engine.name(adopted), labels=pointer)
        asked.clear()
        await provider.reap()
        assert {created, adopted} <= set(asked) and unused not in asked
        assert existing(engine, engine.name(created)) == (True, True)
        await provider.destroy(created)
        engine.api.remove_volume(engine.name(adopted))


async def test_nothing_is_removed_while_store_is_unavailable(engine: EngineSandbox) -> None:
    async def fail(session_ids: Sequence[str]) -> list[str]:
        raise StoreUnavailable("the store is away")

    session = engine.new_session()
    async with engine.provider(existing=fail) as provider:
        await provider.acquire(session)
        engine.sessions.discard(session)
        await provider.reap()
        assert existing(engine, engine.name(session)) == (True, True)
        await provider.destroy(session)


async def test_objects_of_others_are_kept_even_with_our_names(engine: EngineSandbox, provider: DockerSandboxes) -> None:
    name = engine.name("0123456789abcdef")
    for labels in ({}, {"anker.installation": "another", "anker.session": "0123456789abcdef", "anker.role": "sandbox"}):
        with container_and_volume(engine, name, labels):
            await provider.reap()
            assert existing(engine, name) == (True, True)
    engine.api.create_network(f"{engine.network}-other", labels={"anker.installation": "another"})
    try:
        await provider.reap()
        assert engine.api.networks(names=[f"{engine.network}-other"])
    finally:
        engine.api.remove_network(f"{engine.network}-other")


async def test_remains_of_killed_process_are_removed_once_old(
    engine: EngineSandbox, provider: DockerSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"anker.installation": engine.installation}
    session = engine.new_session()
    helper, pooled = f"{engine.prefix}-guard-x", f"{engine.prefix}-pool-x"
    orphan = engine.api.create_volume(f"{engine.prefix}-pool-y", labels={**ours, "anker.role": "pool"})["Name"]
    target = engine.api.create_volume(f"{engine.prefix}-pool-z", labels={**ours, "anker.role": "pool"})["Name"]
    pointer = {**ours, "anker.role": "sandbox", "anker.session": session, "anker.volume": target}
    engine.api.create_volume(engine.name(session), labels=pointer)
    pool_labels = {**ours, "anker.role": "pool", "anker.volume": pooled, "anker.maker": "dead", "anker.session": ""}
    with (
        container_and_volume(engine, helper, {**ours, "anker.role": "guard"}),
        container_and_volume(engine, pooled, pool_labels),
    ):
        await provider.reap()
        # Young objects may still be in use, except for a pooled sandbox that has ended.
        assert existing(engine, helper)[0] and {orphan, target} <= set(engine.volumes())
        assert existing(engine, pooled) == (False, False)
        monkeypatch.setattr(reaper, "YOUNG_SECONDS", 0.0)
        await provider.reap()
        assert not existing(engine, helper)[0] and orphan not in engine.volumes()
        # The workspace that a session points to stays as long as the session.
        assert {target, engine.name(session)} <= set(engine.volumes())
        engine.sessions.discard(session)
        await provider.reap()
        assert not {target, engine.name(session)} & set(engine.volumes())


async def test_unused_network_is_removed_with_its_rules(engine: EngineSandbox) -> None:
    name = f"{engine.network}-old"
    async with engine.provider(network=name) as old:
        assert await old.check() is None
    async with engine.provider() as new:
        await new.reap()
    assert name not in engine.networks()
    saved = engine.saved_rules()
    assert bridge_name(name) not in saved and engine.bridge in saved


async def test_rules_of_network_removed_by_hand_are_removed(engine: EngineSandbox) -> None:
    name = f"{engine.network}-byhand"
    async with engine.provider(network=name) as other:
        assert await other.check() is None
    assert bridge_name(name) in engine.saved_rules()
    engine.api.remove_network(name)
    async with engine.provider() as provider:
        assert await provider.check() is None
    saved = engine.saved_rules()
    assert bridge_name(name) not in saved and engine.bridge in saved
