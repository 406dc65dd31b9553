"""What must hold of the compose file, whoever changes it."""

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
"""What compose puts in for a variable that is not set."""


def test_the_service_runs_by_itself_and_the_rest_when_it_is_asked_for() -> None:
    by_itself = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert by_itself == {"anker"}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["stores"]} == {*STORES, "worker"}


@pytest.mark.parametrize("name", STORES)
def test_a_store_is_where_only_the_service_is(name: str) -> None:
    store = SERVICES[name]
    assert store["networks"] == ["stores"]
    assert COMPOSE["networks"]["stores"]["internal"] is True
    assert "ports" not in store
    assert "network_mode" not in store
    others = {other for other, service in SERVICES.items() if "stores" in service.get("networks", ())}
    assert others == {*STORES, "anker", "worker"}


def test_mongodb_keeps_its_data_and_redis_has_none_to_keep() -> None:
    """And what else the images declare as volumes is not left behind."""
    (volume,) = SERVICES["mongodb"]["volumes"]
    assert volume.partition(":")[0] in COMPOSE["volumes"]
    assert SERVICES["mongodb"]["tmpfs"] == ["/data/configdb"]
    assert "volumes" not in SERVICES["redis"]
    assert SERVICES["redis"]["command"] == ["redis-server", "--save", "", "--appendonly", "no"]
    assert SERVICES["redis"]["tmpfs"] == ["/data"]


def test_the_sandboxes_network_is_left_to_the_service() -> None:
    """A network that compose makes would not have the rules, and sandboxes would be in it with others."""
    default = Settings.model_fields["sandbox_network"].default
    for name, network in COMPOSE["networks"].items():
        assert default not in (name, network.get("name"))
        assert not network.get("external")
        assert "SANDBOX_NETWORK" not in str(network)


def test_the_service_can_be_reached_from_this_machine_only() -> None:
    assert SERVICES["anker"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "outside" in SERVICES["anker"]["networks"]  # a port cannot be published from internal networks alone
    assert not COMPOSE["networks"]["outside"]


def test_the_service_has_the_engines_socket_its_data_and_few_privileges() -> None:
    anker = SERVICES["anker"]
    assert "/var/run/docker.sock:/var/run/docker.sock" in anker["volumes"]
    assert "data:/data" in anker["volumes"]
    assert anker["cap_drop"] == ["ALL"]
    assert anker["read_only"] is True
    assert "privileged" not in anker
    assert [name for name, service in SERVICES.items() if "docker.sock" in str(service)] == ["anker", "worker"]


def test_a_worker_is_the_service_without_a_published_port_and_with_the_same_health_check() -> None:
    worker, anker = SERVICES["worker"], SERVICES["anker"]
    assert worker["command"][-3:] == ["-m", "app", "worker"]
    assert worker["ports"] == []
    assert anker["environment"]["WORKER_PORT"] == anker["environment"]["PORT"]
    own = {"profiles", "command", "ports"}
    assert {name: value for name, value in worker.items() if name not in own} == {
        name: value for name, value in anker.items() if name not in own
    }


def test_what_it_builds_is_there() -> None:
    assert SERVICES["anker"]["build"] == "."
    assert (ROOT / "Dockerfile").is_file()
    sandbox = SERVICES["sandbox"]
    assert (ROOT / sandbox["build"]["context"] / sandbox["build"]["dockerfile"]).is_file()
    assert sandbox["image"] == f"${{SANDBOX_IMAGE:-{Settings.model_fields['sandbox_image'].default}}}"


def test_settings_that_this_version_refuses_are_not_set() -> None:
    environment = {name: DEFAULT.sub(r"\1", value) for name, value in SERVICES["anker"]["environment"].items()}
    assert environment["SANDBOX_PROVIDER"] == "docker"  # with `auto`, processes could choose differently
    assert set(environment) <= {name.upper() for name in Settings.model_fields}
    Settings(_env_file=None, **{name.lower(): value for name, value in environment.items()})  # type: ignore[arg-type]
