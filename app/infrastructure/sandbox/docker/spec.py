"""How a sandbox's container is made: everything that keeps what runs in it from the rest of the machine."""

import errno
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from app.infrastructure.sandbox.client.http_sandbox import HOME
from app.infrastructure.sandbox.docker.facts import TOKEN

PORT = 8080
USER = "ubuntu"
HOSTNAME = "sandbox"
PIDS = 1024
MIB = 1024 * 1024
OPEN_FILES = 8192
"""No more than an engine without privileges may have itself."""
FILE_BYTES = 8 * 1024 * MIB
"""The largest single file. The workspace as a whole is bounded by the engine's disk only."""
SHM_BYTES = 256 * MIB
IDLE_MARGIN_SECONDS = 300.0
"""How much longer than its time to live a sandbox waits before it ends itself: every service is gone then."""

NO_RESOLVER = "127.0.0.1"
"""The sandbox's own loopback, where nothing answers."""

SUDO_CAPABILITIES = ("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID")
"""What sudo, apt and dpkg need. None of them reaches the network's settings, devices or other namespaces."""

_UNITS = {"": 1, "b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", re.IGNORECASE)

Config = dict[str, object]


def parse_size(text: str) -> int:
    """Bytes from `512m`, `1g`, `1.5G`; a bare number is bytes.

    Raises:
        ValueError: it is none of these.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("must be a size such as 512m or 1g")
    return int(float(found[1]) * _UNITS[found[2].lower()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a new sandbox is told about the network beyond it."""

    resolves: bool = True
    """Whether it may ask the engine's resolvers; without, it knows `hosts` only."""
    hosts: Sequence[tuple[str, str]] = ()
    """Names and addresses for its `/etc/hosts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the sandboxes of one service have in common. Answers what the engine's API takes to create a container."""

    image: str
    network: str
    memory: int
    """Bytes, of memory and swap together."""
    cpus: float
    sudo: bool
    runtime: str
    ttl_seconds: float
    exec_seconds: float
    seccomp: str = field(default_factory=lambda: _profile(), repr=False)
    """The system calls that a sandbox may make, as the engine takes them."""

    def sandbox(self, *, token: str, volume: str, labels: Mapping[str, str], reach: Reach) -> Config:
        """A sandbox with `volume` as its workspace. Its volume gets the same labels if it does not exist yet."""
        return {
            "Image": self.image,
            "Hostname": HOSTNAME,
            "User": USER,
            "Env": self._environment(token),
            "Labels": dict(labels),
            "HostConfig": {
                **self._hardening(),
                **self._limits(),
                "NetworkMode": self.network,
                "Sysctls": {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"},
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": volume,
                        "Target": HOME,
                        "VolumeOptions": {"Labels": dict(labels)},
                    }
                ],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
                "RestartPolicy": {"Name": "no"},
                "ExtraHosts": [f"{name}:{address}" for name, address in reach.hosts],
                **({} if reach.resolves else {"Dns": [NO_RESOLVER], "DnsOptions": ["timeout:1", "attempts:1"]}),
                **({"Runtime": self.runtime} if self.runtime else {}),
            },
        }

    def helper(self, *, script: str, variables: Mapping[str, str], labels: Mapping[str, str]) -> Config:
        """A short-lived container that may change the host's packet filter, and nothing else there."""
        return {
            **self._tool(script, labels),
            "User": "0",
            "Env": [f"{name}={value}" for name, value in variables.items()],
            "HostConfig": {
                **_POWERLESS,
                # NET_RAW: iptables of the older kind talks to the kernel through a raw socket.
                "CapAdd": ["NET_ADMIN", "NET_RAW"],
                "NetworkMode": "host",
                "Tmpfs": {"/run": "rw,nosuid,nodev,noexec,size=1m"},
            },
        }

    def glance(self, *, script: str, labels: Mapping[str, str]) -> Config:
        """A short-lived container on the engine's own network, that may nothing."""
        return {**self._tool(script, labels), "User": "65534", "HostConfig": {**_POWERLESS, "NetworkMode": "bridge"}}

    def _tool(self, script: str, labels: Mapping[str, str]) -> Config:
        return {
            "Image": self.image,
            "Entrypoint": ["/bin/sh", "-c", script],
            "Cmd": [],
            "WorkingDir": "/",
            "Labels": dict(labels),
        }

    def _environment(self, token: str) -> list[str]:
        return [
            f"{TOKEN}={token}",
            f"SANDBOX_EXEC_SECONDS={self.exec_seconds:g}",
            f"SANDBOX_SUDO={'true' if self.sudo else 'false'}",
            f"SANDBOX_IDLE_SECONDS={self.ttl_seconds + IDLE_MARGIN_SECONDS:g}",
        ]

    def _hardening(self) -> Config:
        # An operator who wants sudo gets a root that is no more than the container's: still without the capabilities
        # that open the host, still behind the same system call filter.
        privileges = [] if self.sudo else ["no-new-privileges"]
        profile = _without_audit(self.seccomp) if self.sudo else self.seccomp
        return {
            "ReadonlyRootfs": not self.sudo,
            "CapDrop": ["ALL"],
            "CapAdd": list(SUDO_CAPABILITIES) if self.sudo else [],
            "SecurityOpt": [*privileges, f"seccomp={profile}"],
            "Privileged": False,
            "IpcMode": "private",
            # The older kind of control groups would be the host's otherwise.
            "CgroupnsMode": "private",
            "PublishAllPorts": False,
        }

    def _limits(self) -> Config:
        return {
            "Memory": self.memory,
            "MemorySwap": self.memory,
            "NanoCpus": round(self.cpus * 1e9),
            "PidsLimit": PIDS,
            "ShmSize": SHM_BYTES,
            "Tmpfs": {
                "/tmp": f"rw,nosuid,nodev,exec,size={self.memory // 4},mode=1777",  # noqa: S108 - inside the container
                "/run": "rw,nosuid,nodev,size=16m,mode=1777",
                "/var/tmp": f"rw,nosuid,nodev,exec,size={self.memory // 16},mode=1777",  # noqa: S108
            },
            "Ulimits": [
                {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": FILE_BYTES, "Hard": FILE_BYTES},
            ],
        }


_NETLINK_AUDIT = 9
_POWERLESS: Config = {
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
    "ReadonlyRootfs": True,
    "Memory": 128 * MIB,
    "PidsLimit": 64,
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
}


def _profile() -> str:
    text = resources.files(__package__ or "").joinpath("seccomp.json").read_text("utf-8")
    return json.dumps(json.loads(text), separators=(",", ":"))


def _without_audit(profile: str) -> str:
    """`profile`, under which sudo hears that there is no audit system. Told that it may not use it, it gives up."""
    rules = json.loads(profile)
    rules["syscalls"].append(
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": errno.EPROTONOSUPPORT,
            "args": [
                {"index": 0, "value": socket.AF_NETLINK, "op": "SCMP_CMP_EQ"},
                {"index": 2, "value": _NETLINK_AUDIT, "op": "SCMP_CMP_EQ"},
            ],
        }
    )
    return json.dumps(rules, separators=(",", ":"))
