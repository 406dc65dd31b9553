"""Requirements on the compose file."""

import asyncio
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from app.infrastructure.streams.redis.connection import RedisConnection
from app.settings import Settings
from tests.support.eventually import eventually
from tests.support.redis_server import require_redis
from tests.support.service import ROOT
from tests.support.stores import free_port

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STORES = ("mongodb", "redis")
DEFAULT = re.compile(r"\$\{\w+:-(.*)\}")
"""The default value of a variable in the compose file."""


def test_only_the_service_has_no_profile() -> None:
    default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert default == {"anker"}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["stores"]} == {*STORES, "worker"}


@pytest.mark.parametrize("name", STORES)
def test_store_shares_its_internal_network_with_the_service_only(name: str) -> None:
    store = SERVICES[name]
    assert store["networks"] == ["stores"]
    assert COMPOSE["networks"]["stores"]["internal"] is True
    assert "ports" not in store
    assert "network_mode" not in store
    others = {other for other, service in SERVICES.items() if "stores" in service.get("networks", ())}
    assert others == {*STORES, "anker", "worker"}


def test_mongodb_data_is_in_a_volume_and_redis_keeps_none() -> None:
    """Other volumes that the images declare are tmpfs, so that no anonymous volumes remain."""
    data, script = SERVICES["mongodb"]["volumes"]
    assert data.partition(":")[0] in COMPOSE["volumes"]
    assert (ROOT / script.partition(":")[0]).is_file()
    assert "/data/configdb" in SERVICES["mongodb"]["tmpfs"]
    assert "volumes" not in SERVICES["redis"]
    assert SERVICES["redis"]["tmpfs"] == ["/data"]


@pytest.mark.parametrize("name", ["anker", "worker", *STORES])
def test_container_is_hardened_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges"]
    assert {"mem_limit", "pids_limit", "cpus"} <= set(service)
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert name in ("anker", "worker") or (service["user"] == "999:999" and "cap_add" not in service)


def test_passwords_of_stores_are_files_with_settings_that_fit(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/secrets.sh", tmp_path / "deploy")
    script = ["sh", tmp_path / "deploy/secrets.sh"]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    settings = Settings(_env_file=None, **{k.lower(): v for k, _, v in (line.partition("=") for line in lines.split())})  # type: ignore[arg-type]
    for name, secret in COMPOSE["secrets"].items():
        password = (tmp_path / secret["file"]).read_text()
        assert len(password) == 32
        url = settings.redis_url if name == "redis_password" else settings.mongodb_url
        assert name == "mongodb_root_password" or f"anker:{password}@" in url.get_secret_value()
        assert password not in str(COMPOSE)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert subprocess.run(script, capture_output=True).returncode == 1  # passwords that data needs are kept


async def test_redis_command_serves_the_service_and_nobody_else(tmp_path: Path) -> None:
    require_redis()
    (command,) = SERVICES["redis"]["command"]
    (tmp_path / "password").write_text("secret-of-redis")
    port = free_port()
    command = command.replace("$$", "$").replace("/run/secrets/redis_password", str(tmp_path / "password"))
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f"{command} --port {port} --bind 127.0.0.1", cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    try:
        async with RedisConnection(f"redis://anker:secret-of-redis@127.0.0.1:{port}/0", prefix="anker:x") as redis:
            await eventually(lambda: _is_up(redis))
        async with Redis(host="127.0.0.1", port=port) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.ping()
        async with Redis(host="127.0.0.1", port=port, username="anker", password="secret-of-redis") as client:
            await client.incr("anker:x:limits")
            with pytest.raises(NoPermissionError):
                await client.get("other")
            with pytest.raises(NoPermissionError):
                await client.config_get("*")
    finally:
        process.terminate()
        await process.wait()


async def _is_up(redis: RedisConnection) -> bool:
    return await redis.check() is None


@pytest.mark.parametrize("file", sorted((ROOT / "deploy").glob("compose.*.yaml")), ids=lambda file: file.stem)
def test_additional_compose_file_fits(file: Path) -> None:
    text = file.read_text().replace("!reset ", "")
    added = yaml.safe_load(text)
    for name, service in added["services"].items():
        assert name in SERVICES or service["cap_drop"] == ["ALL"], name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in added["volumes"] or source == "./deploy/login" or (ROOT / source).exists()


def test_tls_example_publishes_the_proxy_only() -> None:
    text = (ROOT / "deploy/compose.tls.yaml").read_text()
    assert text.count("ports: !reset []") == 1
    tls = yaml.safe_load(text.replace("!reset ", ""))
    assert tls["services"]["caddy"]["ports"] == ["80:80", "443:443"]
    assert tls["services"]["caddy"]["networks"] == ["proxy"]
    assert tls["services"]["anker"]["environment"]["AUTH"] == "tokens"


def test_sandbox_network_is_not_in_the_compose_file() -> None:
    """A network that compose creates would not have the labels and rules of the service's own."""
    default = Settings.model_fields["sandbox_network"].default
    for name, network in COMPOSE["networks"].items():
        assert default not in (name, network.get("name"))
        assert not network.get("external")
        assert "SANDBOX_NETWORK" not in str(network)


def test_service_is_published_on_loopback_only() -> None:
    assert SERVICES["anker"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "outside" in SERVICES["anker"]["networks"]  # a port cannot be published from internal networks alone
    assert not COMPOSE["networks"]["outside"]


def test_service_has_engine_socket_data_volume_and_few_privileges() -> None:
    anker = SERVICES["anker"]
    assert "/var/run/docker.sock:/var/run/docker.sock" in anker["volumes"]
    assert "data:/data" in anker["volumes"]
    assert anker["cap_drop"] == ["ALL"]
    assert anker["read_only"] is True
    assert "privileged" not in anker
    assert [name for name, service in SERVICES.items() if "docker.sock" in str(service)] == ["anker", "worker"]


def test_worker_equals_service_without_published_ports() -> None:
    worker, anker = SERVICES["worker"], SERVICES["anker"]
    assert worker["command"][-3:] == ["-m", "app", "worker"]
    assert worker["ports"] == []
    assert anker["environment"]["WORKER_PORT"] == anker["environment"]["PORT"]
    different = {"profiles", "command", "ports"}
    assert {name: value for name, value in worker.items() if name not in different} == {
        name: value for name, value in anker.items() if name not in different
    }


def test_build_contexts_and_dockerfiles_exist() -> None:
    assert SERVICES["anker"]["build"] == "."
    assert (ROOT / "Dockerfile").is_file()
    sandbox = SERVICES["sandbox"]
    assert (ROOT / sandbox["build"]["context"] / sandbox["build"]["dockerfile"]).is_file()
    assert sandbox["image"] == f"${{SANDBOX_IMAGE:-{Settings.model_fields['sandbox_image'].default}}}"


def test_environment_has_valid_settings_only() -> None:
    environment = {name: DEFAULT.sub(r"\1", value) for name, value in SERVICES["anker"]["environment"].items()}
    assert environment["SANDBOX_PROVIDER"] == "docker"  # with `auto`, processes could choose different providers
    assert set(environment) <= {name.upper() for name in Settings.model_fields}
    Settings(_env_file=None, **{name.lower(): value for name, value in environment.items()})  # type: ignore[arg-type]
