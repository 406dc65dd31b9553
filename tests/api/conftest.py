from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.house import House, served
from tests.api.studio import Studio


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    await house.close()


@pytest.fixture
async def client(house: House) -> httpx.AsyncClient:
    """A client without a network; it sees a stream when it is over."""
    return house.client


@pytest.fixture
async def live(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server."""
    async with served(house) as client:
        yield client


@pytest.fixture
async def studio() -> AsyncIterator[Studio]:
    async with Studio().open() as studio:
        yield studio
