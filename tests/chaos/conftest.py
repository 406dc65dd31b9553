"""The seed, how much there is to bear, and the model."""

import os
import random
import resource
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.redis_server import RedisServer
from tests.support.stores import Mongod, mongod_binary

LONG = os.environ.get("CHAOS_LONG") == "1"
KILLS = int(os.environ.get("CHAOS_ROUNDS", "200" if LONG else "20"))
"""SIGKILLs of the service's processes, over both back ends."""
KILLS_A_STORM = 10
SEED = os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(10**6)))

MANY = {"api1": "api", "api2": "api", "worker1": "worker", "worker2": "worker"}
"""Two of each: the least with which any of them can be missed."""

Settings = dict[str, str]

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000) if hard > 0 else 20_000, hard))


@pytest.fixture
def seed() -> str:
    print(f"CHAOS_SEED={SEED}")
    return SEED


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
def settings(model: ScriptedOpenAI) -> Settings:
    return settings_for(model)


def settings_for(model: ScriptedOpenAI) -> Settings:
    """Of every process of the service."""
    return {"API_KEY": "sk-0123456789", "API_BASE": model.url, "SANDBOX_PROVIDER": "local"}


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    server = Mongod(tmp_path_factory.mktemp("mongod"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What hangs is noticed by the tests themselves, which say more about it."""
    for item in items:
        if "chaos" not in item.path.parts:
            continue
        item.add_marker(pytest.mark.timeout(300))
        missing = _missing() if "mongod" in getattr(item, "fixturenames", ()) else ""
        if missing and os.environ.get("CI") != "true":
            item.add_marker(pytest.mark.skip(reason=f"there is no {missing} here"))


def _missing() -> str:
    if mongod_binary() is None:
        return "mongod"
    return "" if shutil.which("redis-server") else "redis-server"
