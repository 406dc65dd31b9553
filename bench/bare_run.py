"""`docker run` with the options that the provider gives its containers, and nothing around it: the peer of a start."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.infrastructure.sandbox.docker.container_spec import NameResolution
from app.infrastructure.sandbox.docker.engine import DockerEngine
from app.infrastructure.sandbox.docker.engine_objects import SANDBOX_PORT
from bench.containers import Corner, docker, inspect
from bench.harness import CannotRun

POLL_SECONDS = 0.01
"""As tightly as the provider looks."""
_SECONDS = 60

Config = Mapping[str, Any]


class Status:
    """What a sandbox says of its parts, asked with as little as possible."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._request = (
            f"GET /api/v1/status HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()

    async def ready(self) -> set[str]:
        """The parts that can be used; none while nobody answers."""
        try:
            reader, writer = await asyncio.open_connection(self._address, SANDBOX_PORT)
        except OSError:
            return set()
        try:
            writer.write(self._request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        except OSError:
            return set()
        finally:
            writer.close()
        if not head.startswith(b"HTTP/1.1 200"):
            return set()
        data: dict[str, Any] = json.loads(body)["data"]
        return {name for name, part in data.items() if isinstance(part, dict) and part["ready"]}

    async def until(self, part: str) -> float:
        """The moment (`time.perf_counter`) at which `part` was first ready.

        Raises:
            CannotRun: it is not, in time.
        """
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            if part in await self.ready():
                return time.perf_counter()
            await asyncio.sleep(POLL_SECONDS)
        raise CannotRun(f"the {part} of a sandbox at {self._address} does not come")


class BareRun:
    """Starts sandboxes with the command line of Docker."""

    def __init__(self, place: Corner, engine: DockerEngine, folder: Path) -> None:
        """`folder` is for the profile of the system calls, which the command line takes as a file."""
        self._place = place
        self._engine = engine
        self._profile = folder / "seccomp.json"

    async def start(self, number: int) -> tuple[str, Status]:
        """Return at its first answer; its name, and how to ask it."""
        name, labels = f"{self._place.prefix}-bare-{number}", {"anker.bench": "bare"}
        config = self._place.spec.sandbox(volume=name, labels=labels, resolution=NameResolution())
        command = ["run", "--detach", "--name", name, *self._flags(config), self._place.image]
        await asyncio.to_thread(docker, *command)
        container = await self._engine.container(name)
        assert container is not None
        status = Status(container.address(self._place.network), container.token)
        await status.until("shell")
        return name, status

    def _flags(self, config: Config) -> list[str]:
        """`config`, which is for the engine's API, as the command line takes it."""
        host: Config = config["HostConfig"]
        (mount,) = host["Mounts"]
        kept = [each for each in host["SecurityOpt"] if not each.startswith("seccomp=")]
        (profile,) = [each for each in host["SecurityOpt"] if each not in kept]
        self._profile.write_text(profile.removeprefix("seccomp="))
        many: dict[str, Iterable[str]] = {
            "env": config["Env"],
            "label": _pairs(config["Labels"]),
            "cap-drop": host["CapDrop"],
            "security-opt": [*kept, f"seccomp={self._profile}"],
            "tmpfs": _pairs(host["Tmpfs"], ":"),
            "ulimit": [f"{each['Name']}={each['Soft']}:{each['Hard']}" for each in host["Ulimits"]],
            "sysctl": _pairs(host["Sysctls"]),
            "mount": [f"type={mount['Type']},source={mount['Source']},target={mount['Target']}"],
            "log-opt": _pairs(host["LogConfig"]["Config"]),
        }
        once: dict[str, object] = {
            "hostname": config["Hostname"],
            "user": config["User"],
            "read-only": str(host["ReadonlyRootfs"]).lower(),
            "ipc": host["IpcMode"],
            "cgroupns": host["CgroupnsMode"],
            "memory": host["Memory"],
            "memory-swap": host["MemorySwap"],
            "cpus": host["NanoCpus"] / 1e9,
            "pids-limit": host["PidsLimit"],
            "shm-size": host["ShmSize"],
            "network": host["NetworkMode"],
            "log-driver": host["LogConfig"]["Type"],
        }
        return [
            *(f"--{name}={value}" for name, value in once.items()),
            *(f"--{name}={value}" for name, values in many.items() for value in values),
        ]


def options_of(name: str) -> dict[str, object]:
    """The options of a container that are not its own alone."""
    inspected = inspect(name)
    config, host = inspected["Config"], dict(inspected["HostConfig"])
    for mount in host["Mounts"]:
        mount.pop("Source")
        mount.pop("VolumeOptions", None)
    variables = sorted(each for each in config["Env"] if not each.startswith("SANDBOX_TOKEN="))
    host |= {"User": config["User"], "Hostname": config["Hostname"], "Env": variables}
    host["Ulimits"] = sorted(host["Ulimits"], key=lambda limit: limit["Name"])
    # What is not set is told in more than one way.
    return {name: value for name, value in host.items() if value}


def _pairs(words: Mapping[str, str], between: str = "=") -> list[str]:
    return [f"{name}{between}{value}" for name, value in words.items()]
