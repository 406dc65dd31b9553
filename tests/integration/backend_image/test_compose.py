"""Requirements on the compose file."""

import re
from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.support.service import ROOT

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
    (volume,) = SERVICES["mongodb"]["volumes"]
    assert volume.partition(":")[0] in COMPOSE["volumes"]
    assert SERVICES["mongodb"]["tmpfs"] == ["/data/configdb"]
    assert "volumes" not in SERVICES["redis"]
    assert SERVICES["redis"]["command"] == ["redis-server", "--save", "", "--appendonly", "no"]
    assert SERVICES["redis"]["tmpfs"] == ["/data"]


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
