"""Containers, volumes and networks as the Docker engine reports them, parsed from its JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

JsonObject = Mapping[str, object]

SANDBOX_PORT = 8080
"""TCP port of the program inside a sandbox container."""

TOKEN_VARIABLE = "SANDBOX_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable that holds a sandbox container's token."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEndpoint:
    """A container's connection to one network."""

    address: str
    """IPv4 address; "" while the container does not run."""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContainer:
    """A container. The engine's list omits `token`, `exit_code`, `out_of_memory` and `network_mode`."""

    id: str
    name: str
    labels: Mapping[str, str]
    state: str
    """`created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`."""
    created: datetime
    endpoints: Mapping[str, NetworkEndpoint]
    """Endpoints by network name."""
    volumes: tuple[str, ...]
    exit_code: int = 0
    out_of_memory: bool = False
    token: str = ""
    network_mode: str = ""

    @property
    def running(self) -> bool:
        """Whether its processes run now (a paused container does not count)."""
        return self.state == "running"

    @property
    def ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ("exited", "dead", "removing")

    def address(self, network: str) -> str:
        """Return its IPv4 address in `network`; "" when it has none now."""
        endpoint = self.endpoints.get(network)
        return endpoint.address if endpoint else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVolume:
    """A volume."""

    name: str
    labels: Mapping[str, str]
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNetwork:
    """A network. The engine's list omits `members`."""

    id: str
    name: str
    driver: str
    labels: Mapping[str, str]
    options: Mapping[str, str]
    ipv6: bool
    internal: bool
    subnets: tuple[str, ...]
    members: tuple[str, ...] = ()
    """Ids of the containers that are connected now."""


def inspected_container(data: object) -> EngineContainer:
    """Parse the response of `GET /containers/<id>/json`."""
    environment = {name: value for name, _, value in (each.partition("=") for each in texts(data, "Config", "Env"))}
    return EngineContainer(
        id=text(data, "Id"),
        name=text(data, "Name").removeprefix("/"),
        labels=_text_map(data, "Config", "Labels"),
        state=text(data, "State", "Status"),
        created=timestamp(text(data, "Created")),
        endpoints=_endpoints(data),
        volumes=_volumes(data),
        exit_code=integer(data, "State", "ExitCode"),
        out_of_memory=_value(data, "State", "OOMKilled") is True,
        token=environment.get(TOKEN_VARIABLE, ""),
        network_mode=text(data, "HostConfig", "NetworkMode"),
    )


def listed_container(data: object) -> EngineContainer:
    """Parse one element of the response of `GET /containers/json`."""
    names = [name.removeprefix("/") for name in texts(data, "Names")]
    return EngineContainer(
        id=text(data, "Id"),
        # Legacy links add names that contain a slash.
        name=next((name for name in names if "/" not in name), ""),
        labels=_text_map(data, "Labels"),
        state=text(data, "State"),
        created=datetime.fromtimestamp(integer(data, "Created"), UTC),
        endpoints=_endpoints(data),
        volumes=_volumes(data),
    )


def parse_volume(data: object) -> EngineVolume:
    """Parse a volume, inspected or listed."""
    created = timestamp(text(data, "CreatedAt"))
    return EngineVolume(name=text(data, "Name"), labels=_text_map(data, "Labels"), created=created)


def parse_network(data: object) -> EngineNetwork:
    """Parse a network, inspected or listed."""
    return EngineNetwork(
        id=text(data, "Id"),
        name=text(data, "Name"),
        driver=text(data, "Driver"),
        labels=_text_map(data, "Labels"),
        options=_text_map(data, "Options"),
        ipv6=_value(data, "EnableIPv6") is True,
        internal=_value(data, "Internal") is True,
        subnets=tuple(subnet for each in items(data, "IPAM", "Config") if (subnet := text(each, "Subnet"))),
        members=tuple(_object(data, "Containers")),
    )


def text(data: object, *path: str) -> str:
    """Return the string at `path`; "" when it is missing."""
    value = _value(data, *path)
    return value if isinstance(value, str) else ""


def integer(data: object, *path: str) -> int:
    """Return the integer at `path`; 0 when it is missing."""
    value = _value(data, *path)
    return value if isinstance(value, int) else 0


def items(data: object, *path: str) -> list[object]:
    """Return the list at `path`; an empty one when it is missing."""
    value = _value(data, *path)
    return cast("list[object]", value) if isinstance(value, list) else []


def texts(data: object, *path: str) -> list[str]:
    """Return the strings of the list at `path`."""
    return [each for each in items(data, *path) if isinstance(each, str)]


def timestamp(value: str) -> datetime:
    """Parse a time as the engine writes it, with nanoseconds; return the epoch when it is malformed."""
    found = _TIMESTAMP.fullmatch(value)
    return datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")) if found else EPOCH


def _value(data: object, *path: str) -> object:
    for name in path:
        data = cast("dict[str, object]", data).get(name) if isinstance(data, dict) else None
    return data


def _object(data: object, *path: str) -> JsonObject:
    value = _value(data, *path)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _text_map(data: object, *path: str) -> dict[str, str]:
    return {name: value for name, value in _object(data, *path).items() if isinstance(value, str)}


def _endpoints(data: object) -> dict[str, NetworkEndpoint]:
    networks = _object(data, "NetworkSettings", "Networks")
    return {
        name: NetworkEndpoint(address=text(each, "IPAddress"), aliases=tuple(texts(each, "Aliases")))
        for name, each in networks.items()
    }


def _volumes(data: object) -> tuple[str, ...]:
    return tuple(text(each, "Name") for each in items(data, "Mounts") if text(each, "Type") == "volume")
