"""What the engine tells of its objects, read out of its JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

JsonObject = Mapping[str, object]

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
TOKEN = "SANDBOX_TOKEN"  # noqa: S105 - a variable's name

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place in a network."""

    address: str
    """IPv4, "" while it does not run."""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container. From a listing it has no `token`, `exit_code` and `network_mode`."""

    id: str
    name: str
    labels: Mapping[str, str]
    state: str
    """`created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`."""
    created: datetime
    endpoints: Mapping[str, Endpoint]
    """By the network's name."""
    volumes: tuple[str, ...]
    exit_code: int = 0
    out_of_memory: bool = False
    token: str = ""
    network_mode: str = ""

    @property
    def runs(self) -> bool:
        """Whether its processes run now."""
        return self.state == "running"

    @property
    def ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ("exited", "dead", "removing")

    def address(self, network: str) -> str:
        """Its IPv4 address in `network`; "" when it has none now."""
        endpoint = self.endpoints.get(network)
        return endpoint.address if endpoint else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume."""

    name: str
    labels: Mapping[str, str]
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network. From a listing it has no `members`."""

    id: str
    name: str
    driver: str
    labels: Mapping[str, str]
    options: Mapping[str, str]
    ipv6: bool
    internal: bool
    subnets: tuple[str, ...]
    members: tuple[str, ...] = ()
    """The ids of the containers that are in it now."""


def inspected(data: JsonObject) -> Container:
    """A container from `GET /containers/<id>/json`."""
    state, config, host = part(data, "State"), part(data, "Config"), part(data, "HostConfig")
    variables = {name: value for name, _, value in (each.partition("=") for each in texts(config.get("Env")))}
    return Container(
        id=text(data, "Id"),
        name=text(data, "Name").removeprefix("/"),
        labels=words(config.get("Labels")),
        state=text(state, "Status"),
        created=moment(text(data, "Created")),
        endpoints=_endpoints(data),
        volumes=_volumes(data),
        exit_code=_whole(state, "ExitCode"),
        out_of_memory=state.get("OOMKilled") is True,
        token=variables.get(TOKEN, ""),
        network_mode=text(host, "NetworkMode"),
    )


def listed(data: JsonObject) -> Container:
    """A container from `GET /containers/json`."""
    names = [name.removeprefix("/") for name in texts(data.get("Names"))]
    return Container(
        id=text(data, "Id"),
        # Links, a thing of the past, would add names with a slash in them.
        name=next((name for name in names if "/" not in name), ""),
        labels=words(data.get("Labels")),
        state=text(data, "State"),
        created=datetime.fromtimestamp(_whole(data, "Created"), UTC),
        endpoints=_endpoints(data),
        volumes=_volumes(data),
    )


def volume(data: JsonObject) -> Volume:
    """A volume from `GET /volumes/<name>`, or one of `GET /volumes`."""
    return Volume(name=text(data, "Name"), labels=words(data.get("Labels")), created=moment(text(data, "CreatedAt")))


def network(data: JsonObject) -> Network:
    """A network from `GET /networks/<id>`, or one of `GET /networks`."""
    configs = part(data, "IPAM").get("Config")
    return Network(
        id=text(data, "Id"),
        name=text(data, "Name"),
        driver=text(data, "Driver"),
        labels=words(data.get("Labels")),
        options=words(data.get("Options")),
        ipv6=data.get("EnableIPv6") is True,
        internal=data.get("Internal") is True,
        subnets=tuple(subnet for each in objects(configs) if (subnet := text(each, "Subnet"))),
        members=tuple(part(data, "Containers")),
    )


def part(data: JsonObject, name: str) -> JsonObject:
    """The object `name`; an empty one when it is missing."""
    value = data.get(name)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def objects(value: object) -> list[JsonObject]:
    """The objects of a list."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("dict[str, object]", each) for each in items if isinstance(each, dict)]


def texts(value: object) -> list[str]:
    """The texts of a list."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [each for each in items if isinstance(each, str)]


def words(value: object) -> dict[str, str]:
    """An object of texts, such as labels."""
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return {name: each for name, each in fields.items() if isinstance(each, str)}


def text(data: JsonObject, name: str) -> str:
    """The text `name`; "" when it is missing."""
    value = data.get(name)
    return value if isinstance(value, str) else ""


def moment(value: str) -> datetime:
    """A time as the engine writes it, with nanoseconds; the beginning of time when it makes no sense."""
    found = _MOMENT.fullmatch(value)
    return datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")) if found else BEGINNING


def _whole(data: JsonObject, name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0


def _endpoints(data: JsonObject) -> dict[str, Endpoint]:
    networks = part(part(data, "NetworkSettings"), "Networks")
    return {
        name: Endpoint(
            address=text(part(networks, name), "IPAddress"), aliases=tuple(texts(part(networks, name).get("Aliases")))
        )
        for name in networks
    }


def _volumes(data: JsonObject) -> tuple[str, ...]:
    mounts = objects(data.get("Mounts"))
    return tuple(text(each, "Name") for each in mounts if text(each, "Type") == "volume")
