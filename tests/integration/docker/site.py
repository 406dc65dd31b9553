"""A place of its own on a real engine for a test run: names, labels and a network that nobody else has."""

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
from app.infrastructure.sandbox.docker.guard import Guard
from app.infrastructure.sandbox.docker.names import INSTALLATION
from app.infrastructure.sandbox.docker.provider import DockerOptions, DockerSandboxes
from app.infrastructure.sandbox.docker.rules import bridge_name

ROOT = Path(__file__).parents[3]
IMAGE = os.environ.get("SANDBOX_IMAGE", "simpleyyt/anker-sandbox")
PREPARED = os.environ.get("ANKER_TEST_IMAGE_READY")
"""Set where the image is known to be there: it is neither looked for nor built then."""


def make_sure_of_engine_and_image() -> None:
    """Start an engine and build the image where they are missing; skip, or fail in CI, where that does not work."""
    for script in () if PREPARED else ("engine.sh", "image.sh"):
        done = subprocess.run(
            ["bash", ROOT / "scripts" / script],
            capture_output=True,
            text=True,
            env={**os.environ, "SANDBOX_IMAGE": IMAGE},
        )
        if done.returncode:
            words = f"no Docker sandboxes here: {done.stderr.strip().splitlines()[-1:]}"
            if os.environ.get("CI"):
                pytest.fail(words)
            pytest.skip(words)


class Site:
    """What a test run has on the engine. `api` is the SDK's client, to look behind the provider's back."""

    def __init__(self, name: str = "") -> None:
        word = name or secrets.token_hex(3)
        self.prefix = f"at{word}"
        self.installation = f"anker-test-{word}"
        self.network = f"anker-test-{word}"
        self.bridge = bridge_name(self.network)
        self.sessions: set[str] = set()
        """The sessions that exist, as far as a provider is told."""
        self.api = APIClient(version="auto", **kwargs_from_env())
        self._networks = {self.network}

    async def known(self, asked: Sequence[str]) -> Collection[str]:
        return self.sessions.intersection(asked)

    def session(self) -> str:
        """A new session."""
        session = secrets.token_hex(8)
        self.sessions.add(session)
        return session

    def provider(self, **changes: Any) -> DockerSandboxes:
        """A service's provider, not yet started. Several of them are several processes of one installation."""
        whole: dict[str, Any] = {
            "image": IMAGE,
            "name_prefix": self.prefix,
            "network": self.network,
            "installation": self.installation,
            "known": self.known,
            "exec_seconds": 5.0,
            # A test that wants a round asks for it.
            "reap_seconds": 3600.0,
            **changes,
        }
        self._networks.add(whole["network"])
        decided = {field.name: whole.pop(field.name) for field in fields(DockerOptions) if field.name in whole}
        return DockerSandboxes(DockerOptions(**decided), **whole)

    def name(self, session: str) -> str:
        """The container of a session, and its volume."""
        return f"{self.prefix}-{session}"

    def inspect(self, session: str) -> dict[str, Any]:
        """A session's container as the engine sees it."""
        return self.api.inspect_container(self.name(session))

    def container(self, session: str) -> dict[str, Any] | None:
        """The same, or None."""
        try:
            return self.inspect(session)
        except NotFound:
            return None

    def address(self, session: str) -> str:
        """A session's container's address."""
        return self.inspect(session)["NetworkSettings"]["Networks"][self.network]["IPAddress"]

    def containers(self, **labels: str) -> list[str]:
        """The names of this site's containers."""
        found = self.api.containers(all=True, filters={"label": self._labels(labels)})
        return sorted(each["Names"][0].removeprefix("/") for each in found)

    def volumes(self, **labels: str) -> list[str]:
        """The names of this site's volumes."""
        found = self.api.volumes({"label": self._labels(labels)})
        return sorted(each["Name"] for each in found["Volumes"] or ())

    def networks(self) -> list[str]:
        """The names of this site's networks."""
        return sorted(each["Name"] for each in self.api.networks(filters={"label": self._labels({})}))

    async def clear(self) -> None:
        """Remove all there is, the rules of the packet filter too."""
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
            await asyncio.gather(*(guard_of(provider).retire(network) for network in self._networks))
        finally:
            await provider.close()

    def saved_rules(self) -> str:
        """The host's packet filter, for both kinds of addresses."""
        both = (["iptables-save", "-t", "filter"], ["ip6tables-save", "-t", "filter"])
        return "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in both)

    def _labels(self, labels: dict[str, str]) -> list[str]:
        return [f"{INSTALLATION}={self.installation}", *(f"anker.{name}={value}" for name, value in labels.items())]


def guard_of(provider: DockerSandboxes) -> Guard:
    """A provider's network guard."""
    return provider._site.guard


async def run(sandbox: Sandbox, command: str, *, shell: str = "main", seconds: int = 60) -> tuple[int, str]:
    """A command's exit status and output, waited for."""
    state = await sandbox.shell_exec(shell, "", command)
    output = state.output
    while state.status == "running" and seconds > 0:
        state = await sandbox.shell_wait(shell, min(seconds, 20))
        output += state.output
        seconds -= 20
    assert state.status == "completed", output
    return state.returncode or 0, output


@asynccontextmanager
async def site(name: str = "") -> AsyncIterator[Site]:
    """A new site; whatever is left of it at the end is removed."""
    made = Site(name)
    try:
        yield made
    finally:
        await made.clear()
        assert (made.containers(), made.volumes(), made.networks()) == ([], [], [])
        assert made.bridge.removeprefix("anker-") not in made.saved_rules()
        made.api.close()
