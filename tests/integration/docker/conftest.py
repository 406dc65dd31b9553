"""Tests on a real Docker engine with the real image. They share a site, and a running service where they can."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.site import Site, make_sure_of_engine_and_image, site
from tests.integration.docker.world import World, world


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    make_sure_of_engine_and_image()
    yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def here(engine: None) -> AsyncIterator[Site]:
    """The test run's own place on the engine."""
    async with site() as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def service(here: Site) -> AsyncIterator[DockerSandboxes]:
    """A service that goes on through the whole run."""
    async with here.provider() as provider:
        assert await provider.check() is None
        yield provider


@pytest.fixture(scope="session")
def beyond(engine: None) -> Iterator[World]:
    """The world beyond this machine."""
    with world() as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def box(here: Site, service: DockerSandboxes) -> AsyncIterator[Sandbox]:
    """A sandbox with open egress that the tests share: none of them ends it."""
    session = here.session()
    sandbox = await service.acquire(session)
    yield sandbox
    assert (await service.acquire(session)).instance_id == sandbox.instance_id
