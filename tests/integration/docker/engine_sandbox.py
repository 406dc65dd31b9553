"""An isolated part of a real Docker engine for one test run: names, labels and networks that no other test run uses."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient
from docker.errors import NotFound
from docker.utils import kwargs_from_env

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.container_spec import INSTALLATION_LABEL, DockerOptions
from app.infrastructure.sandbox.docker.network.egress import bridge_name
from app.infrastructure.sandbox.docker.provider import DockerSandboxes

ROOT = Path(__file__).parents[3]
IMAGE = os.environ.get("SANDBOX_IMAGE", "simpleyyt/anker-sandbox")
SHELL_IMAGE = f"{IMAGE}-shell-only"
"""The image without desktop and browser, whose start costs most of the CPU time of a sandbox."""

PREPARED = os.environ.get("ANKER_TEST_IMAGE_READY")
"""Set where the image is known to be current: then the scripts that start the engine and build it do not run."""


def prepare_engine_and_images() -> None:
    """Start an engine and build the images if they are missing. If that fails, skip the test, or fail it in CI."""
    scripts = () if PREPARED else ("engine.sh", "image.sh")
    commands = [["bash", str(ROOT / "scripts" / script)] for script in scripts]
    for command in (*commands, ["docker", "build", "--quiet", "--tag", SHELL_IMAGE, "-"]):
        done = subprocess.run(
            command,
            input=f"FROM {IMAGE}\nENV SANDBOX_BROWSER=off SANDBOX_DESKTOP=false\n",
            capture_output=True,
            text=True,
            env={**os.environ, "SANDBOX_IMAGE": IMAGE},
        )
        if done.returncode:
            reason = f"Docker sandboxes are not available: {done.stderr.strip().splitlines()[-1:]}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)


class EngineSandbox:
    """The objects of one test run on the engine. `api` is the SDK's client, to look at them without the provider."""

    def __init__(self) -> None:
        suffix = secrets.token_hex(3)
        self.prefix = f"at{suffix}"
        self.installation = f"anker-test-{suffix}"
        self.network = f"anker-test-{suffix}"
        self.bridge = bridge_name(self.network)
        self.sessions: set[str] = set()
        """The sessions that exist, as the provider's reaper sees it."""
        self.api = APIClient(version="auto", **kwargs_from_env())
        self._networks = {self.network}

    async def existing(self, session_ids: Sequence[str]) -> Collection[str]:
        return self.sessions.intersection(session_ids)

    def new_session(self) -> str:
        session = secrets.token_hex(8)
        self.sessions.add(session)
        return session

    def provider(self, **changes: Any) -> DockerSandboxes:
        """Return a provider that is not started. Two of them stand for two processes of one installation.

        Args:
            changes: Fields of `DockerOptions` or arguments of `DockerSandboxes` that differ from the defaults.
        """
        arguments: dict[str, Any] = {
            "image": SHELL_IMAGE,
            "name_prefix": self.prefix,
            "network": self.network,
            "installation": self.installation,
            "existing": self.existing,
            "exec_seconds": 5.0,
            # Tests call `reap` themselves.
            "reap_seconds": 3600.0,
            **changes,
        }
        self._networks.add(arguments["network"])
        names = [field.name for field in fields(DockerOptions)]
        options = {name: arguments.pop(name) for name in names if name in arguments}
        return DockerSandboxes(DockerOptions(**options), **arguments)

    def name(self, session: str) -> str:
        """Return the name of a session's container and volume."""
        return f"{self.prefix}-{session}"

    def inspect(self, session: str) -> dict[str, Any]:
        """Return what the engine reports about a session's container."""
        return self.api.inspect_container(self.name(session))

    def has_container(self, session: str) -> bool:
        try:
            self.inspect(session)
        except NotFound:
            return False
        return True

    def has_volume(self, session: str) -> bool:
        return self.name(session) in self.volumes()

    def address(self, session: str) -> str:
        return self.inspect(session)["NetworkSettings"]["Networks"][self.network]["IPAddress"]

    def gateway(self) -> str:
        return self.api.inspect_network(self.network)["IPAM"]["Config"][0]["Gateway"]

    def containers(self, **labels: str) -> list[str]:
        """Return the names of this run's containers with these labels (without `anker.`)."""
        found = self.api.containers(all=True, filters={"label": self._labels(labels)})
        return sorted(each["Names"][0].removeprefix("/") for each in found)

    def volumes(self, **labels: str) -> list[str]:
        """Return the names of this run's volumes with these labels (without `anker.`)."""
        found = self.api.volumes({"label": self._labels(labels)})
        return sorted(each["Name"] for each in found["Volumes"] or ())

    def networks(self) -> list[str]:
        return sorted(each["Name"] for each in self.api.networks(filters={"label": self._labels({})}))

    async def clear(self) -> None:
        """Remove all containers, volumes, networks and firewall rules of this run."""
        for container in self.api.containers(all=True, filters={"label": self._labels({})}):
            try:
                self.api.remove_container(container["Id"], force=True)
            except NotFound:
                continue
        for volume in self.volumes():
            self.api.remove_volume(volume)
        provider = self.provider()
        try:
            for network in self.networks():
                self.api.remove_network(network)
            await asyncio.gather(*(provider.firewall.remove_rules(network) for network in self._networks))
        finally:
            await provider.close()

    def saved_rules(self) -> str:
        """Return the host's firewall rules for IPv4 and IPv6."""
        commands = (["iptables-save", "-t", "filter"], ["ip6tables-save", "-t", "filter"])
        return "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands)

    def _labels(self, labels: dict[str, str]) -> list[str]:
        ownership = f"{INSTALLATION_LABEL}={self.installation}"
        return [ownership, *(f"anker.{name}={value}" for name, value in labels.items())]


async def run(sandbox: Sandbox, command: str, *, shell: str = "main", seconds: int = 60) -> tuple[int, str]:
    """Run a command to its end; return its exit status and output."""
    state = await sandbox.shell_exec(shell, "", command)
    output = state.output
    while state.status == "running" and seconds > 0:
        state = await sandbox.shell_wait(shell, min(seconds, 20))
        output += state.output
        seconds -= 20
    assert state.status == "completed", output
    return state.returncode or 0, output


async def write(sandbox: Sandbox, file: str, content: str) -> None:
    await sandbox.file_write(file, content, append=False, sudo=False)


async def read(sandbox: Sandbox, file: str) -> str:
    return (await sandbox.file_read(file, start=None, end=None, sudo=False)).content


@asynccontextmanager
async def engine_sandbox() -> AsyncIterator[EngineSandbox]:
    """Yield a new part of the engine, and check at the end that everything in it can be removed."""
    made = EngineSandbox()
    try:
        yield made
    finally:
        await made.clear()
        assert (made.containers(), made.volumes(), made.networks()) == ([], [], [])
        assert made.bridge.removeprefix("anker-") not in made.saved_rules()
        made.api.close()
