"""Fixtures of the API tests: the harness, and clients of it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.vnc_harness import VncHarness
from tests.support.api_harness import ApiHarness, serve


@pytest.fixture
async def harness() -> AsyncIterator[ApiHarness]:
    harness = ApiHarness()
    yield harness
    await harness.close()


@pytest.fixture
async def client(harness: ApiHarness) -> httpx.AsyncClient:
    """A client without a network; it receives a stream once the stream has ended."""
    return harness.client


@pytest.fixture
async def live_client(harness: ApiHarness) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server."""
    async with serve(harness) as client:
        yield client


@pytest.fixture
async def vnc_harness() -> AsyncIterator[VncHarness]:
    async with VncHarness().run() as harness:
        yield harness
