"""Fixtures of the chaos tests: the seed, the number of faults, the stores and the model."""

import os
import random
import resource
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SandboxProcess
from tests.support.redis_server import RedisServer
from tests.support.stores import Mongod, mongod_binary

LONG = os.environ.get("CHAOS_LONG") == "1"
"""Whether to run the long mode: many more kills, each time with a new seed, and the tests that take minutes."""

KILLS = int(os.environ.get("CHAOS_ROUNDS", "200" if LONG else "12"))
"""Number of SIGKILLs to the processes of the service, over both stores."""

KILLS_PER_TEST = 10

DEFAULT_SEED = "224775"
"""Seed of the short mode, so that CI injects the same faults every time."""

SEED = os.environ.get("CHAOS_SEED") or (str(random.SystemRandom().randrange(10**6)) if LONG else DEFAULT_SEED)

TWO_OF_EACH = {"api1": "api", "api2": "api", "worker1": "worker", "worker2": "worker"}
"""The smallest cluster in which any process can fail."""

Settings = dict[str, str]

_soft_limit, _hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(_hard_limit, 20_000) if _hard_limit > 0 else 20_000, _hard_limit))


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
    """Return the settings of every process of the service."""
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_cluster(
    model: ScriptedOpenAI, mongod: Mongod, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """A cluster of two API processes and two workers for all tests of a module; it takes seconds to start."""
    folder = tmp_path_factory.mktemp("shared")
    settings, sandbox = settings_for(model), SandboxProcess(folder / "sandbox")
    async with (
        RedisServer() as redis,
        Cluster(folder / "cluster", TWO_OF_EACH, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster,
    ):
        yield cluster
        await cluster.terminate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests more time than the tests themselves wait, and skip those whose stores are not installed."""
    for item in items:
        if "chaos" not in item.path.parts:
            continue
        item.add_marker(pytest.mark.timeout(300))
        missing = _missing_program() if "mongod" in getattr(item, "fixturenames", ()) else ""
        if missing and os.environ.get("CI") != "true":
            item.add_marker(pytest.mark.skip(reason=f"{missing} is not installed"))


def _missing_program() -> str:
    if mongod_binary() is None:
        return "mongod"
    return "" if shutil.which("redis-server") else "redis-server"
