"""Reserve names in the Docker engine for a benchmark, and remove everything that has them."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from app.infrastructure.sandbox.docker.container_spec import ContainerSpec, DockerOptions, ObjectNames
from app.infrastructure.sandbox.docker.network.egress import Egress
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from app.settings import Settings
from bench.harness import CannotRun

# The defaults of the settings.
MEMORY = "1g"
CPUS = 1.0
EGRESS: Egress = "open"
TTL_MINUTES = 30
EXEC_SECONDS = 10.0

_SECONDS = 120


@dataclass(frozen=True, slots=True)
class EngineNamespace:
    """The containers, volumes and networks whose names begin with `prefix`."""

    prefix: str
    image: str

    @property
    def network(self) -> str:
        """Return the name of the sandboxes' network."""
        return f"{self.prefix}-network"

    @property
    def names(self) -> ObjectNames:
        """Return the names of the objects of this installation."""
        return ObjectNames(self.prefix, self.prefix)

    @property
    def spec(self) -> ContainerSpec:
        """Return the configuration of the provider's containers."""
        return ContainerSpec(self._options())

    def sandboxes(self, known: set[str], *, pool_size: int = 0) -> DockerSandboxes:
        """Return the provider, for which the sessions `known` exist."""

        async def existing(asked: Sequence[str]) -> set[str]:
            return known.intersection(asked)

        return DockerSandboxes(self._options(pool_size), installation=self.prefix, existing=existing)

    def _options(self, pool_size: int = 0) -> DockerOptions:
        return DockerOptions(
            image=self.image,
            name_prefix=self.prefix,
            network=self.network,
            ttl_minutes=TTL_MINUTES,
            pool_size=pool_size,
            memory=MEMORY,
            cpus=CPUS,
            egress=EGRESS,
            exec_seconds=EXEC_SECONDS,
        )

    def settings(self) -> dict[str, str]:
        """Return the settings of a service whose sandboxes have these names."""
        where = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
        return where | {
            "SANDBOX_PROVIDER": "docker",
            "SANDBOX_IMAGE": self.image,
            "SANDBOX_NAME_PREFIX": self.prefix,
            "SANDBOX_NETWORK": self.network,
        }

    def clear(self) -> None:
        """Remove everything, and the packet filter rules of the network."""
        listings = {
            "container": ("ps", "--all", "--format", "{{.Names}}"),
            "volume": ("volume", "ls", "--format", "{{.Name}}"),
            "network": ("network", "ls", "--format", "{{.Name}}"),
        }
        for kind, listing in listings.items():
            names = [name for name in docker(*listing).split() if name.startswith(f"{self.prefix}-")]
            if names:
                docker(kind, "rm", *(["--force"] if kind != "network" else []), *names)
            if names and kind == "network":
                asyncio.run(self._remove_rules())

    async def _remove_rules(self) -> None:
        sandboxes = self.sandboxes(set())
        await sandboxes.firewall.remove_rules(self.network)
        await sandboxes.close()


@contextmanager
def engine_namespace() -> Iterator[EngineNamespace]:
    """Yield reserved names, and remove everything that has them at the end.

    Raises:
        CannotRun: The Docker engine or the sandbox image is missing.
    """
    image = os.environ.get("SANDBOX_IMAGE") or Settings.model_fields["sandbox_image"].default
    docker("version", why="needs a Docker engine (scripts/engine.sh starts one)")
    missing = f"needs the image {image} (scripts/image.sh builds it)"
    # Use the image by its id: its name may be given to a new image during the benchmark.
    image = docker("image", "inspect", "--format", "{{.Id}}", image, why=missing).strip()
    found = EngineNamespace(f"anker-bench-{secrets.token_hex(3)}", image)
    try:
        yield found
    finally:
        found.clear()


def docker(*arguments: str, why: str = "") -> str:
    """Run the Docker command line and return its output.

    Raises:
        CannotRun: The command failed; `why` says what is missing.
    """
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(f"{why or ' '.join(arguments[:2])}: {error}") from error
    if done.returncode:
        raise CannotRun(f"{why or ' '.join(arguments[:2])}: {done.stderr.strip()[-500:]}")
    return done.stdout


def inspect(name: str) -> dict[str, Any]:
    """Return what the engine knows about a container."""
    return orjson.loads(docker("container", "inspect", name))[0]


def token_of(inspected: Mapping[str, Any]) -> str:
    """Return the token of a sandbox."""
    variables = dict(each.partition("=")[::2] for each in inspected["Config"]["Env"])
    return variables["SANDBOX_TOKEN"]
