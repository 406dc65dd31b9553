"""What belongs to nobody is removed, what belongs to somebody else never is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from docker.errors import NotFound

from app.domain.errors import StoreUnavailable
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.site import IMAGE, Site, guard_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextmanager
def objects(here: Site, name: str, labels: dict[str, str]) -> Iterator[str]:
    """A container that ends at once, and a volume, of this name and with these labels; answers the container's id."""
    here.api.create_volume(name, labels=labels)
    made = here.api.create_container(IMAGE, entrypoint=["/bin/true"], name=name, labels=labels)["Id"]
    here.api.start(made)
    here.api.wait(made)
    try:
        yield made
    finally:
        with suppress(NotFound):
            here.api.remove_container(made, force=True)
        with suppress(NotFound):
            here.api.remove_volume(name)


def is_there(here: Site, name: str) -> tuple[bool, bool]:
    """Whether there is a container of this name, and a volume."""
    containers = here.api.containers(all=True, filters={"name": f"^/{name}$"})
    volumes = here.api.volumes({"name": name})["Volumes"] or []
    return bool(containers), any(each["Name"] == name for each in volumes)


async def test_the_sandboxes_of_sessions_that_are_no_more_are_removed_and_no_others(
    here: Site, service: DockerSandboxes
) -> None:
    kept, gone, rested = here.session(), here.session(), here.session()
    for session in (kept, gone, rested):
        await service.acquire(session)
    async with here.provider() as other:
        await other.acquire(rested)
    here.api.kill(here.name(rested))
    here.sessions.discard(gone)
    await service.reap()
    assert is_there(here, here.name(gone)) == (False, False)
    assert is_there(here, here.name(kept)) == (True, True) and here.inspect(kept)["State"]["Running"]
    # One that has ended is only its files.
    assert is_there(here, here.name(rested)) == (False, True)
    for session in (kept, rested):
        await service.destroy(session)


async def test_the_store_is_asked_only_for_sessions_that_something_is_there_of(here: Site) -> None:
    asked: list[str] = []

    async def known(these: Sequence[str]) -> list[str]:
        asked.extend(these)
        return list(these)

    made, adopted, untouched = here.session(), here.session(), here.session()
    pointer = {"anker.installation": here.installation, "anker.session": adopted, "anker.volume": "elsewhere"}
    async with here.provider(known=known) as service:
        await service.acquire(made)
        here.api.create_volume(here.name(adopted), labels=pointer)
        asked.clear()
        await service.reap()
        assert {made, adopted} <= set(asked) and untouched not in asked
        assert is_there(here, here.name(made)) == (True, True)
        await service.destroy(made)
        here.api.remove_volume(here.name(adopted))


async def test_nothing_is_removed_while_nobody_can_tell_which_sessions_exist(here: Site) -> None:
    async def unknown(asked: Sequence[str]) -> list[str]:
        raise StoreUnavailable("the store is away")

    session = here.session()
    async with here.provider(known=unknown) as service:
        await service.acquire(session)
        here.sessions.discard(session)
        await service.reap()
        assert is_there(here, here.name(session)) == (True, True)
        await service.destroy(session)


async def test_what_others_have_made_is_not_touched_even_where_it_is_called_like_ours(
    here: Site, service: DockerSandboxes
) -> None:
    name = here.name("0123456789abcdef")
    for labels in ({}, {"anker.installation": "another", "anker.session": "0123456789abcdef", "anker.role": "sandbox"}):
        with objects(here, name, labels):
            await service.reap()
            assert is_there(here, name) == (True, True)
    here.api.create_network(f"{here.network}-other", labels={"anker.installation": "another"})
    try:
        await service.reap()
        assert here.api.networks(names=[f"{here.network}-other"])
    finally:
        here.api.remove_network(f"{here.network}-other")


async def test_what_a_killed_service_left_half_done_is_cleared_up(
    here: Site, service: DockerSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"anker.installation": here.installation}
    session = here.session()
    helper, waiting = f"{here.prefix}-guard-x", f"{here.prefix}-pool-x"
    orphan = here.api.create_volume(f"{here.prefix}-pool-y", labels={**ours, "anker.role": "pool"})["Name"]
    target = here.api.create_volume(f"{here.prefix}-pool-z", labels={**ours, "anker.role": "pool"})["Name"]
    pointer = {**ours, "anker.role": "sandbox", "anker.session": session, "anker.volume": target}
    here.api.create_volume(here.name(session), labels=pointer)
    pool = {**ours, "anker.role": "pool", "anker.volume": waiting, "anker.maker": "dead", "anker.session": ""}
    with objects(here, helper, {**ours, "anker.role": "guard"}), objects(here, waiting, pool):
        await service.reap()
        # Somebody may still be busy with what is so young; a waiting sandbox that has ended is nobody's.
        assert is_there(here, helper)[0] and {orphan, target} <= set(here.volumes())
        assert is_there(here, waiting) == (False, False)
        monkeypatch.setattr("app.infrastructure.sandbox.docker.reaper.YOUNG_SECONDS", 0.0)
        await service.reap()
        assert not is_there(here, helper)[0] and orphan not in here.volumes()
        # The one that a session points to stays as long as the session.
        assert {target, here.name(session)} <= set(here.volumes())
        here.sessions.discard(session)
        await service.reap()
        assert not {target, here.name(session)} & set(here.volumes())


async def test_a_network_that_is_not_used_any_more_goes_with_its_rules(here: Site) -> None:
    name = f"{here.network}-old"
    async with here.provider(network=name) as old:
        assert await old.check() is None
        bridge = guard_of(old)._network.bridge
    async with here.provider() as new:
        await new.reap()
    assert name not in here.networks()
    saved = here.saved_rules()
    assert bridge not in saved and here.bridge in saved


async def test_the_rules_of_a_network_that_somebody_removed_by_hand_go_too(here: Site) -> None:
    name = f"{here.network}-byhand"
    async with here.provider(network=name) as other:
        assert await other.check() is None
        bridge = guard_of(other)._network.bridge
    assert bridge in here.saved_rules()
    here.api.remove_network(name)
    async with here.provider() as service:
        assert await service.check() is None
    saved = here.saved_rules()
    assert bridge not in saved and here.bridge in saved
