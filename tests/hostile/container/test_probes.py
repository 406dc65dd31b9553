"""Probes from inside a sandbox's container, as the agent's user makes them."""

import json
import os

import pytest

from app.domain.errors import SandboxFailure
from app.domain.external.sandbox import Sandbox
from tests.integration.docker.engine_sandbox import EngineSandbox, run, write

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def probe(sandbox: Sandbox, program: str, *arguments: str) -> dict[str, str]:
    """Run a Python program that prints a JSON object, and return the object."""
    await write(sandbox, "probe.py", program)
    code, output = await run(sandbox, f"python3 probe.py {' '.join(arguments)}")
    assert code == 0, output
    return json.loads(output.splitlines()[-1])


SYSTEM_CALLS = {
    **{"acct": 163, "add_key": 248, "bpf": 321, "clock_settime": 227, "delete_module": 176},
    **{"finit_module": 313, "fsconfig": 431, "fsmount": 432, "fsopen": 430, "fspick": 433, "init_module": 175},
    **{"io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425, "ioperm": 173, "iopl": 172},
    **{"kcmp": 312, "kexec_file_load": 320, "kexec_load": 246, "keyctl": 250, "lookup_dcookie": 212},
    **{"mount": 165, "mount_setattr": 442, "move_mount": 429, "name_to_handle_at": 303, "nfsservctl": 180},
    **{"open_by_handle_at": 304, "open_tree": 428, "perf_event_open": 298, "pidfd_getfd": 438, "pivot_root": 155},
    **{"process_vm_readv": 310, "process_vm_writev": 311, "quotactl": 179, "reboot": 169, "request_key": 249},
    **{"sethostname": 170, "setdomainname": 171, "setns": 308, "settimeofday": 164, "swapoff": 168, "swapon": 167},
    **{"syslog": 103, "umount2": 166, "userfaultfd": 323, "vhangup": 153},
}
"""Numbers of system calls on x86-64 that no program of the agent needs."""

_CALL = """
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, number in NUMBERS.items():
    ctypes.set_errno(0)
    value = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    found[name] = "done" if value >= 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps(found))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
async def test_system_calls_that_reach_the_kernel_or_the_host_are_refused(sandbox: Sandbox) -> None:
    found = await probe(sandbox, _CALL.replace("NUMBERS", repr(SYSTEM_CALLS)))
    assert {name: result for name, result in found.items() if result not in ("EPERM", "ENOSYS")} == {}


_WRITE = """
import json, os
found = {}
for root in ("/proc/sys", "/sys"):
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                found[path] = "opened"
            except OSError:
                pass
print(json.dumps(found))
"""


async def test_no_setting_of_the_kernel_and_no_cgroup_can_be_written(sandbox: Sandbox) -> None:
    found = await probe(sandbox, _WRITE)
    # Names of the process itself, in its own namespaces, that a user may change for itself.
    assert {path: result for path, result in found.items() if not path.startswith("/proc/sys/kernel/ns_last_pid")} == {}


_DEVICES = """
import json, os, stat
found = {}
for folder, folders, names in os.walk("/"):
    folders[:] = [each for each in folders if os.path.join(folder, each) not in ("/proc", "/sys")]
    for name in names:
        path = os.path.join(folder, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not path.startswith("/dev/pts/")):
            found[path] = "device"
        elif stat.S_ISSOCK(mode) and ("docker" in name or "containerd" in name):
            found[path] = "engine"
print(json.dumps(found))
"""

HARMLESS_DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")}


async def test_container_has_no_device_of_the_host_and_no_socket_of_the_engine(sandbox: Sandbox) -> None:
    assert set(await probe(sandbox, _DEVICES)) <= HARMLESS_DEVICES


_FIRST_PROCESS = """
import ctypes, errno, json, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def ptrace():
    if libc.ptrace(16, 1, 0, 0):
        raise OSError(ctypes.get_errno(), "")
attempts = {
    "kill": lambda: os.kill(1, signal.SIGSTOP),
    "ptrace": ptrace,
    "prlimit": lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (4, 4)),
    "affinity": lambda: os.sched_setaffinity(1, {0}),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    "memory": lambda: open("/proc/1/mem", "r+b").close(),
    "environment": lambda: open("/proc/1/environ").read(),
    "files": lambda: os.listdir("/proc/1/fd"),
    "folder": lambda: os.listdir("/proc/1/cwd/"),
    "root": lambda: os.listdir("/proc/1/root/"),
    "out-of-memory score": lambda: open("/proc/1/oom_score_adj", "w").write("1000"),
    "namespaces": lambda: os.readlink("/proc/1/ns/mnt"),
}
found = {}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


async def test_program_of_the_sandbox_is_beyond_reach(sandbox: Sandbox) -> None:
    found = await probe(sandbox, _FIRST_PROCESS)
    assert {name: result for name, result in found.items() if result not in ("EPERM", "EACCES")} == {}


_CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def attempt(target):
    address, port = target.rsplit(" ", 1)
    try:
        socket.create_connection((address, int(port)), timeout=3).close()
    except OSError:
        return None
    return target
with ThreadPoolExecutor(64) as pool:
    print(json.dumps({each: "open" for each in pool.map(attempt, TARGETS) if each}))
"""

METADATA = ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")
HOST_PORTS = (22, 111, 2375, 2376, 5000, 6379, 8000, 8080, 27017, 49171)


async def test_metadata_services_host_and_other_sandboxes_are_closed(engine: EngineSandbox, sandbox: Sandbox) -> None:
    gateway = engine.gateway()
    near = [gateway.rsplit(".", 1)[0] + f".{number}" for number in range(2, 20)]
    own = (await run(sandbox, "hostname -i"))[1].split()
    targets = [f"{address} {port}" for address in METADATA for port in (80, 443)]
    targets += [f"{gateway} {port}" for port in HOST_PORTS]
    targets += [f"{address} 49171" for address in near if address not in own]
    assert await probe(sandbox, _CONNECT.replace("TARGETS", repr(targets))) == {}


PATHS = [
    *("/proc/1/environ", "/proc/1/mem", "/proc/kcore", "/proc/1/root/etc/shadow", "/etc/shadow", "/root/.bashrc"),
    *("/dev/zero", "/dev/tty", "shadow-link", "pipe", "~/../../etc/shadow", "a\0b", "a" * 5000, "a/" * 2000, ""),
]


async def test_tricks_in_paths_are_refused_by_the_file_api(sandbox: Sandbox) -> None:
    await run(sandbox, "ln -sfn /etc/shadow shadow-link; test -p pipe || mkfifo pipe")
    for path in PATHS:
        with pytest.raises(SandboxFailure):
            await sandbox.file_read(path, start=None, end=None, sudo=False)
