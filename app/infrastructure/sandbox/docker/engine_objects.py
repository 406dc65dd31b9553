"""Containers, volumes and networks as the Docker engine reports them, parsed from its JSON."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from pydantic import (
    AliasChoices,
    AliasPath,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
)
from pydantic_core import PydanticUseDefault

SANDBOX_PORT = 49171
"""TCP port of the program inside a sandbox container."""

TOKEN_VARIABLE = "SANDBOX_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable that holds a sandbox container's token."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _first_own_name(names: str | Sequence[str]) -> str:
    # Legacy links add names that contain a slash.
    own = (name.removeprefix("/") for name in ([names] if isinstance(names, str) else names))
    return next((name for name in own if "/" not in name), "")


def _find_token(variables: Sequence[str]) -> str:
    start = f"{TOKEN_VARIABLE}="
    return next((each.removeprefix(start) for each in variables if each.startswith(start)), "")


def _volume_names(mounts: Sequence[Mapping[str, str]]) -> list[str]:
    return [mount["Name"] for mount in mounts if mount["Type"] == "volume"]


def _subnets(pools: Sequence[Mapping[str, str]]) -> list[str]:
    return [pool["Subnet"] for pool in pools if pool.get("Subnet")]


class EngineObject(BaseModel):
    """Base of the objects. A field that the engine omits, or reports as null, has its default."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _use_default(cls, value: object) -> object:
        if value is None:
            raise PydanticUseDefault
        return value


class NetworkEndpoint(EngineObject):
    """A container's connection to one network."""

    address: str = Field("", validation_alias="IPAddress")
    """IPv4 address; "" while the container does not run."""
    aliases: tuple[str, ...] = Field((), validation_alias="Aliases")


class EngineContainer(EngineObject):
    """A container, inspected or listed. A list omits `token`, `exit_code` and `out_of_memory`."""

    id: str = Field(validation_alias="Id")
    name: Annotated[str, BeforeValidator(_first_own_name)] = Field("", validation_alias=AliasChoices("Name", "Names"))
    labels: dict[str, str] = Field({}, validation_alias=AliasChoices(AliasPath("Config", "Labels"), "Labels"))
    state: str = Field("", validation_alias=AliasChoices(AliasPath("State", "Status"), "State"))
    """`created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`."""
    created: AwareDatetime = Field(EPOCH, validation_alias="Created")
    endpoints: dict[str, NetworkEndpoint] = Field({}, validation_alias=AliasPath("NetworkSettings", "Networks"))
    """Endpoints by network name."""
    volumes: Annotated[tuple[str, ...], BeforeValidator(_volume_names)] = Field((), validation_alias="Mounts")
    exit_code: int = Field(0, validation_alias=AliasPath("State", "ExitCode"))
    out_of_memory: bool = Field(False, validation_alias=AliasPath("State", "OOMKilled"))
    token: Annotated[str, BeforeValidator(_find_token)] = Field("", validation_alias=AliasPath("Config", "Env"))
    network_mode: str = Field("", validation_alias=AliasPath("HostConfig", "NetworkMode"))

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


class EngineVolume(EngineObject):
    """A volume."""

    name: str = Field(validation_alias="Name")
    labels: dict[str, str] = Field({}, validation_alias="Labels")
    created: AwareDatetime = Field(EPOCH, validation_alias="CreatedAt")


class EngineNetwork(EngineObject):
    """A network. The engine's list omits `members`."""

    id: str = Field(validation_alias="Id")
    name: str = Field(validation_alias="Name")
    driver: str = Field("", validation_alias="Driver")
    labels: dict[str, str] = Field({}, validation_alias="Labels")
    options: dict[str, str] = Field({}, validation_alias="Options")
    ipv6: bool = Field(False, validation_alias="EnableIPv6")
    internal: bool = Field(False, validation_alias="Internal")
    subnets: Annotated[tuple[str, ...], BeforeValidator(_subnets)] = Field(
        (), validation_alias=AliasPath("IPAM", "Config")
    )
    members: Annotated[tuple[str, ...], BeforeValidator(tuple)] = Field((), validation_alias="Containers")
    """Ids of the containers that are connected now."""
