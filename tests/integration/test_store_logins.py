"""MongoDB and Redis with logins: minimal rights suffice, and no user, password or address is ever shown."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pymongo
import pytest

from tests.support.cluster import SandboxProcess
from tests.support.redis_server import RedisServer, require_redis
from tests.support.service import ApiClient, ServiceNotStarted, ServiceProcess
from tests.support.sse import SseFrame
from tests.support.stores import Mongod, require_mongod

pytestmark = pytest.mark.timeout(180)

DATABASE = "anker-of-ours"
USER = "anker-ü@service"
PASSWORD = "p@ss:w/o?r#d%41&+ü"
"""A password with every character that has a meaning in a URL."""

ROOT = "root-of-the-test"
RIGHTS = "~anker:* &anker:* +ping +publish +subscribe +unsubscribe +evalsha +script|load +incrby +expire +get +ttl"
"""Rights of the Redis user according to docs/operations.md."""

START_SECONDS = 60
"""Maximum seconds for the start of a service, and for a chat."""


@dataclass(frozen=True)
class Stores:
    """A MongoDB and a Redis with one user each, who has only the rights that the service needs."""

    mongod: Mongod
    redis: RedisServer
    sandbox: SandboxProcess

    def settings(self, *, mongodb: str = PASSWORD, redis: str = PASSWORD) -> dict[str, str]:
        """Return the settings of a service with these passwords."""
        user = quote(USER, safe="")
        logins = [f"{user}:{quote(password, safe='')}@127.0.0.1" for password in (mongodb, redis)]
        return {
            "MONGODB_URL": f"mongodb://{logins[0]}:{self.mongod.port}/?replicaSet=rs0&authSource=admin",
            "MONGODB_DATABASE": DATABASE,
            "REDIS_URL": f"redis://{logins[1]}:{self.redis.port}/0",
            "LOG_LEVEL": "DEBUG",
            **self.sandbox.settings,
        }

    @property
    def hidden(self) -> list[str]:
        """Texts that must not appear in replies and logs."""
        addresses = [f"127.0.0.1:{server.port}" for server in (self.mongod, self.redis)]
        return [
            *(shown for text in (USER, PASSWORD) for shown in (text, quote(text, safe=""))),
            *addresses,
            "wrong-one",
        ]

    def grant(self, *roles: str) -> None:
        """Give the user these roles in the database, and no others."""
        with as_root(self.mongod) as client:
            granted = [{"role": role, "db": DATABASE} for role in roles]
            client.admin.command("updateUser", USER, roles=granted)


@pytest.fixture(scope="module")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    require_mongod()
    folder = tmp_path_factory.mktemp("logins")
    key = folder / "key"
    key.write_bytes(base64.b64encode(secrets.token_bytes(96)))
    key.chmod(0o600)
    server = Mongod(folder / "mongod", arguments=("--auth", "--keyFile", str(key)))
    server.start()
    try:
        # Anybody on the machine of the server may create the first user.
        with pymongo.MongoClient(f"mongodb://127.0.0.1:{server.port}/?directConnection=true") as client:
            client.admin.command("createUser", ROOT, pwd=ROOT, roles=["root"])
        with as_root(server) as client:
            client.admin.command("createUser", USER, pwd=PASSWORD, roles=[{"role": "readWrite", "db": DATABASE}])
        yield server
    finally:
        server.kill()


@pytest.fixture
async def stores(mongod: Mongod, tmp_path: Path) -> AsyncIterator[Stores]:
    require_redis()
    users = tmp_path / "users.acl"
    users.write_text(f"user default off\nuser {USER} on >{PASSWORD} resetchannels -@all {RIGHTS}\n")
    async with RedisServer("--aclfile", str(users)) as redis, SandboxProcess(tmp_path / "sandbox") as sandbox:
        yield Stores(mongod, redis, sandbox)


def as_root(server: Mongod) -> "pymongo.MongoClient[dict[str, object]]":
    """Return a client with all rights."""
    return pymongo.MongoClient(f"mongodb://{ROOT}:{ROOT}@127.0.0.1:{server.port}/?directConnection=true")


async def run_chat(client: ApiClient) -> list[SseFrame]:
    """Return the frames of a whole chat with the demo model, text deltas included."""
    chat = await client.send_message(await client.create_session(), "What can this machine do?", stream=True)
    return await chat.read_all(START_SECONDS)


async def test_chat_works_with_the_documented_rights(stores: Stores, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        services = [ServiceProcess(tmp_path / part / "data", part, **stores.settings()) for part in ("api", "worker")]
        for service in services:
            service.data_dir.parent.mkdir()
            stack.push_async_callback(service.stop)
        lines = await asyncio.gather(*(service.launch(START_SECONDS) for service in services))
        client = ApiClient(lines[0].split()[3])
        stack.push_async_callback(client.close)

        seen = await run_chat(client)
        assert [item.event for item in seen][-1] == "done"
        assert "message_delta" in [item.event for item in seen]  # deltas come over Redis
        replies = [(await client.http.get(path)) for path in ("/ready", "/health", "/metrics")]
        assert [reply.status_code for reply in replies] == [200, 200, 200]

        await asyncio.to_thread(stores.grant)
        replies.append(await client.http.get("/ready"))
        replies.append(await client.http.put("/api/v1/sessions"))
        assert [reply.status_code for reply in replies[-2:]] == [503, 503]
        for reply in replies[-2:]:
            assert "the user of MONGODB_URL may not do this" in reply.json()["msg"]
        await asyncio.to_thread(stores.grant, "readWrite")
        assert (await client.http.get("/ready")).status_code == 200
        seen = await run_chat(client)
        assert [item.event for item in seen][-1] == "done"
    texts = [*lines, *(service.log.read_text() for service in services), *(reply.text for reply in replies)]
    assert "Traceback" not in "".join(texts)
    assert not [text for text in stores.hidden if text in "".join(texts)]


async def test_wrong_mongodb_password_fails_start_with_one_line(stores: Stores, tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path / "data", "worker", **stores.settings(mongodb="wrong-one"))
    with pytest.raises(ServiceNotStarted) as ended:
        await service.launch(START_SECONDS)
    assert str(ended.value) == "MONGODB_URL: the store cannot be opened: the login in MONGODB_URL is refused\n"


async def test_wrong_redis_password_is_reported_and_the_service_works(stores: Stores, tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path / "data", **stores.settings(redis="wrong-one"))
    line = await service.launch(START_SECONDS)
    client = ApiClient(line.split()[3])
    try:
        ready = await client.http.get("/ready")
        assert ready.status_code == 503
        assert "redis: Redis is unavailable (the login in REDIS_URL is missing or refused)" in ready.json()["msg"]
        seen = await run_chat(client)
        assert [item.event for item in seen][-1] == "done"
    finally:
        await client.close()
        await service.stop()
    log = service.log.read_text()
    assert "Redis is unavailable (the login in REDIS_URL is missing or refused)" in log
    assert "Traceback" not in log
    assert not [text for text in stores.hidden if text in line + log + ready.text]
