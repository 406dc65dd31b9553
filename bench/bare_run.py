"""Run `docker run` with the options that the provider gives its containers: the reference of a sandbox start."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.infrastructure.sandbox.docker.engine import DockerEngine
from app.infrastructure.sandbox.docker.engine_objects import SANDBOX_PORT
from bench.containers import EngineNamespace, docker, inspect
from bench.harness import CannotRun

POLL_SECONDS = 0.01
"""Seconds between two status requests, as in the provider."""
_SECONDS = 60

Config = Mapping[str, Any]


class StatusClient:
    """A minimal client for the status of a sandbox."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._request = (
            f"GET /api/v1/status HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()

    async def ready_parts(self) -> set[str]:
        """Return the parts that can be used; none while the sandbox does not respond."""
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

    async def wait_for(self, part: str) -> float:
        """Wait until `part` is ready; return the time (`time.perf_counter`).

        Raises:
            CannotRun: It is not ready in time.
        """
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            if part in await self.ready_parts():
                return time.perf_counter()
            await asyncio.sleep(POLL_SECONDS)
        raise CannotRun(f"the {part} of the sandbox at {self._address} is not ready")


class DockerRun:
    """Starts sandboxes with the command line of Docker."""

    def __init__(self, namespace: EngineNamespace, engine: DockerEngine, folder: Path) -> None:
        """Prepare a client. The seccomp profile, which the command line takes as a file, is written to `folder`."""
        self._namespace = namespace
        self._engine = engine
        self._profile = folder / "seccomp.json"

    async def start(self, number: int) -> tuple[str, StatusClient]:
        """Start a sandbox and wait for its first response; return its name and a client of its status."""
        name, labels = f"{self._namespace.prefix}-bare-{number}", {"anker.bench": "bare"}
        config = self._namespace.spec.sandbox(volume=name, labels=labels, hosts=())
        command = ["run", "--detach", "--name", name, *self._flags(config), self._namespace.image]
        await asyncio.to_thread(docker, *command)
        container = await self._engine.container(name)
        assert container is not None
        status = StatusClient(container.address(self._namespace.network), container.token)
        await status.wait_for("shell")
        return name, status

    def _flags(self, config: Config) -> list[str]:
        """Translate `config`, which is for the engine's API, into command line options."""
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
    """Return the options of a container without those that differ in every container."""
    inspected = inspect(name)
    config, host = inspected["Config"], dict(inspected["HostConfig"])
    for mount in host["Mounts"]:
        mount.pop("Source")
        mount.pop("VolumeOptions", None)
    variables = sorted(each for each in config["Env"] if not each.startswith("SANDBOX_TOKEN="))
    host |= {"User": config["User"], "Hostname": config["Hostname"], "Env": variables}
    host["Ulimits"] = sorted(host["Ulimits"], key=lambda limit: limit["Name"])
    # The engine reports an unset option in more than one way.
    return {name: value for name, value in host.items() if value}


def _pairs(pairs: Mapping[str, str], separator: str = "=") -> list[str]:
    return [f"{name}{separator}{value}" for name, value in pairs.items()]
