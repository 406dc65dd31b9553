"""How containers of this installation are named, labelled and created.

Names and labels are the only record of which object belongs to which session:

object                      name                        labels besides anker.installation
a session's container       <prefix>-<session>          anker.role=sandbox, anker.session
its workspace (a volume)    <prefix>-<session>          anker.role=sandbox, anker.session
a pooled container          <prefix>-pool-<random>      anker.role=pool, anker.session="", anker.volume, anker.maker
its workspace               <prefix>-pool-<random>      anker.role=pool, anker.session=""
both, once adopted          The container is renamed to <prefix>-<session>; its labels cannot change. An empty volume
                            <prefix>-<session> with anker.session and anker.volume points to the workspace.
the network                 SANDBOX_NETWORK             anker.role=network, anker.egress
a firewall helper           <prefix>-guard-<random>     anker.role=guard
"""

import errno
import json
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from app.infrastructure.sandbox.client.http_sandbox import HOME
from app.infrastructure.sandbox.client.shell_ids import encode_scope
from app.infrastructure.sandbox.docker.engine_objects import TOKEN_VARIABLE, EngineContainer
from app.infrastructure.sandbox.docker.network.egress import Egress

INSTALLATION_LABEL = "anker.installation"
SESSION_LABEL = "anker.session"
ROLE_LABEL = "anker.role"
VOLUME_LABEL = "anker.volume"
"""On a pooled container its first name; on a pointer volume the name of the session's workspace volume."""
MAKER_LABEL = "anker.maker"
"""The process that created a pooled container. Only that process may adopt it."""
EGRESS_LABEL = "anker.egress"

START_USER = "0"
"""User of a sandbox's first process, which becomes the program's user at once. The agent's user is `ubuntu`."""
HOSTNAME = "sandbox"
MAX_PROCESSES = 1024
MIB = 1024 * 1024
MAX_OPEN_FILES = 8192
"""Maximum number of open files per process. An engine without privileges cannot grant more than it has itself."""
MAX_FILE_BYTES = 8 * 1024 * MIB
"""Maximum size of one file, in bytes. Only the engine's disk limits the workspace as a whole."""
SHM_BYTES = 256 * MIB
IDLE_MARGIN_SECONDS = 300.0
"""Time in seconds beyond its time to live after which an idle sandbox that no service has removed ends itself."""

UNREACHABLE_RESOLVER = "127.0.0.1"
"""The loopback address of the sandbox, where no DNS server listens."""

CAPABILITIES = ("CHOWN", "KILL", "SETGID", "SETUID")
"""Capabilities by which the sandbox program separates its user from the agent's. The agent's processes have none."""
SUDO_CAPABILITIES = ("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID")
"""Capabilities that sudo, apt and dpkg need. None of them gives access to network settings, devices or namespaces."""

Config = dict[str, object]
Role = Literal["sandbox", "pool", "network", "guard"]

_UNITS = {"": 1, "b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_NETLINK_AUDIT = 9


class ObjectNames:
    """The names and labels of one installation's objects."""

    def __init__(self, prefix: str, installation: str) -> None:
        """Use `prefix` for all names and `installation` as the value of the label that marks ownership."""
        self._prefix = prefix
        self._installation = installation
        self.ownership = {INSTALLATION_LABEL: installation}
        """The label that every object of this installation has, and no other object."""

    def of_session(self, session_id: str) -> str:
        """Return the name of a session's container and of its volume."""
        return f"{self._prefix}-{encode_scope(session_id)}"

    def candidate_sessions(self, name: str, labels: Mapping[str, str]) -> set[str]:
        """Return the ids of the sessions that may own an object with this name and these labels."""
        # The session label of an adopted container is empty. Its name contains the id, unless the id was hashed; then
        # the pointer volume has it.
        suffix = name.removeprefix(f"{self._prefix}-")
        candidates = {labels.get(SESSION_LABEL, ""), suffix if self.of_session(suffix) == name else ""}
        return candidates - {""}

    def new_name(self, role: Literal["pool", "guard"]) -> str:
        """Return a new name for a pooled container and its volume, or for a firewall helper."""
        return f"{self._prefix}-{role}-{secrets.token_hex(6)}"

    def labels(self, role: Role, **more: str) -> dict[str, str]:
        """Return the labels of a new object. The keys of `more` are label names without `anker.`."""
        return {**self.ownership, ROLE_LABEL: role, **{f"anker.{name}": value for name, value in more.items()}}

    def owns(self, labels: Mapping[str, str]) -> bool:
        """Return whether an object with these labels belongs to this installation."""
        return labels.get(INSTALLATION_LABEL) == self._installation


def is_pooled(container: EngineContainer) -> bool:
    """Return whether a container is still in a pool: adoption changes its name, but not its label."""
    return container.labels.get(ROLE_LABEL) == "pool" and container.labels.get(VOLUME_LABEL) == container.name


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerOptions:
    """An operator's options for Docker sandboxes: the `SANDBOX_*` settings of the same names."""

    image: str
    name_prefix: str
    network: str
    ttl_minutes: float = 30
    pool_size: int = 0
    memory: str = "1g"
    cpus: float = 1
    egress: Egress = "open"
    sudo: bool = False
    runtime: str = ""
    exec_seconds: float = 10.0


class ContainerSpec:
    """Builds the engine's configuration of every container that the provider creates."""

    def __init__(self, options: DockerOptions) -> None:
        """Parse the options and load the seccomp profile.

        Raises:
            ValueError: `options.memory` is not a size.
        """
        self.options = options
        self._memory = parse_size(options.memory)
        profile = json.loads(resources.files(__package__ or "").joinpath("seccomp.json").read_text("utf-8"))
        self._seccomp = json.dumps(_without_audit(profile) if options.sudo else profile, separators=(",", ":"))

    def sandbox(self, *, volume: str, labels: Mapping[str, str], hosts: Sequence[tuple[str, str]]) -> Config:
        """Return the configuration of a sandbox with a new token and `volume` as its workspace.

        Args:
            volume: The name of the volume.
            labels: The labels of the container, and of the volume if it does not exist.
            hosts: Host names and addresses for its `/etc/hosts`. Unless egress is open, it can look up no others.
        """
        options = self.options
        return {
            "Image": options.image,
            "Hostname": HOSTNAME,
            "User": START_USER,
            "Env": [
                f"{TOKEN_VARIABLE}={secrets.token_urlsafe(32)}",
                f"SANDBOX_EXEC_SECONDS={options.exec_seconds:g}",
                f"SANDBOX_SUDO={'true' if options.sudo else 'false'}",
                f"SANDBOX_IDLE_SECONDS={options.ttl_minutes * 60 + IDLE_MARGIN_SECONDS:g}",
            ],
            "Labels": dict(labels),
            "HostConfig": {
                **self._hardening(),
                **self._limits(),
                "NetworkMode": options.network,
                "Sysctls": {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"},
                # The engine gives the labels to a volume that it creates with the container.
                "Mounts": [
                    {"Type": "volume", "Source": volume, "Target": HOME, "VolumeOptions": {"Labels": dict(labels)}}
                ],
                "LogConfig": _LOG_LIMIT,
                "RestartPolicy": {"Name": "no"},
                "ExtraHosts": [f"{name}:{address}" for name, address in hosts],
                **({} if options.egress == "open" else _NO_DNS),
                **({"Runtime": options.runtime} if options.runtime else {}),
            },
        }

    def firewall_helper(self, *, script: str, variables: Mapping[str, str], labels: Mapping[str, str]) -> Config:
        """Return the configuration of a short-lived container that can change the host's firewall, and nothing else."""
        return {
            **self._script(script, labels),
            "User": "0",
            "Env": [f"{name}={value}" for name, value in variables.items()],
            "HostConfig": {
                **_NO_PRIVILEGES,
                # iptables-legacy talks to the kernel through a raw socket, which needs NET_RAW.
                "CapAdd": ["NET_ADMIN", "NET_RAW"],
                "NetworkMode": "host",
                "Tmpfs": {"/run": "rw,nosuid,nodev,noexec,size=1m"},
            },
        }

    def resolver_probe(self, *, labels: Mapping[str, str]) -> Config:
        """Return the configuration of a short-lived container that prints the DNS servers of the default network."""
        host = {**_NO_PRIVILEGES, "NetworkMode": "bridge"}
        return {**self._script("cat /etc/resolv.conf", labels), "User": "65534", "HostConfig": host}

    def _script(self, script: str, labels: Mapping[str, str]) -> Config:
        return {
            "Image": self.options.image,
            "Entrypoint": ["/bin/sh", "-c", script],
            "Cmd": [],
            "WorkingDir": "/",
            "Labels": dict(labels),
        }

    def _hardening(self) -> Config:
        # With sudo, the root user is root of the container only: it has none of the capabilities that give access to
        # the host, and the same system call filter applies. Without, no user can become root.
        sudo = self.options.sudo
        return {
            "ReadonlyRootfs": not sudo,
            "CapDrop": ["ALL"],
            "CapAdd": list(SUDO_CAPABILITIES if sudo else CAPABILITIES),
            "SecurityOpt": [*([] if sudo else ["no-new-privileges"]), f"seccomp={self._seccomp}"],
            "Privileged": False,
            "IpcMode": "private",
            # With cgroup v1 the engine's default is the host's namespace.
            "CgroupnsMode": "private",
            "PublishAllPorts": False,
        }

    def _limits(self) -> Config:
        return {
            "Memory": self._memory,
            "MemorySwap": self._memory,
            "NanoCpus": round(self.options.cpus * 1e9),
            "PidsLimit": MAX_PROCESSES,
            "ShmSize": SHM_BYTES,
            "Tmpfs": {
                "/tmp": f"rw,nosuid,nodev,exec,size={self._memory // 4},mode=1777",  # noqa: S108 - inside the container
                "/run": "rw,nosuid,nodev,size=16m,mode=1777",
                # The program's own, so that the agent cannot fill it.
                "/run/anker": "rw,nosuid,nodev,noexec,size=64m,mode=711",
                "/var/tmp": f"rw,nosuid,nodev,exec,size={self._memory // 16},mode=1777",  # noqa: S108
            },
            "Ulimits": [
                {"Name": "nofile", "Soft": MAX_OPEN_FILES, "Hard": MAX_OPEN_FILES},
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": MAX_FILE_BYTES, "Hard": MAX_FILE_BYTES},
            ],
        }


_NO_DNS: Config = {"Dns": [UNREACHABLE_RESOLVER], "DnsOptions": ["timeout:1", "attempts:1"]}
_LOG_LIMIT = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
_NO_PRIVILEGES: Config = {
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
    "ReadonlyRootfs": True,
    "Memory": 128 * MIB,
    "PidsLimit": 64,
    "LogConfig": _LOG_LIMIT,
}


def parse_size(text: str) -> int:
    """Return the number of bytes that `512m`, `1g` or `1.5G` means. A number without a unit is bytes.

    Raises:
        ValueError: The text is not a size.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("must be a size such as 512m or 1g")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _without_audit(profile: Config) -> Config:
    """Return `profile` with an error for audit sockets that means "no audit system". On EPERM, sudo fails."""
    rule = {
        "names": ["socket"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno.EPROTONOSUPPORT,
        "args": [
            {"index": 0, "value": socket.AF_NETLINK, "op": "SCMP_CMP_EQ"},
            {"index": 2, "value": _NETLINK_AUDIT, "op": "SCMP_CMP_EQ"},
        ],
    }
    return {**profile, "syscalls": [*profile["syscalls"], rule]}  # type: ignore[misc]
