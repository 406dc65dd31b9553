"""Tests on a real Docker engine with the real image. They share a provider and a running sandbox where they can."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import IMAGE, EngineSandbox, engine_sandbox, prepare_engine_and_images
from tests.integration.docker.external_network import ExternalNetwork, external_network


@pytest.fixture(scope="session")
def docker_ready() -> Iterator[None]:
    prepare_engine_and_images()
    yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(docker_ready: None) -> AsyncIterator[EngineSandbox]:
    """The part of the engine that this test run uses."""
    async with engine_sandbox() as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def provider(engine: EngineSandbox) -> AsyncIterator[DockerSandboxes]:
    """A provider that stays open for the whole run."""
    async with engine.provider() as provider:
        assert await provider.check() is None
        yield provider


@pytest.fixture(scope="session")
def external(docker_ready: None) -> Iterator[ExternalNetwork]:
    """Servers outside the sandboxes' network."""
    with external_network() as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sandbox(engine: EngineSandbox) -> AsyncIterator[Sandbox]:
    """A sandbox of the whole image with open egress that the tests share. No test stops it."""
    async with engine.provider(image=IMAGE) as provider:
        session = engine.new_session()
        sandbox = await provider.acquire(session)
        yield sandbox
        assert (await provider.acquire(session)).instance_id == sandbox.instance_id
