"""Attempts to escape, or to exhaust shared resources, from a shell in the sandbox, as a model could make them."""

import asyncio
import os
import subprocess
import time

import pytest

from app.domain.errors import SandboxFailure
from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import EngineSandbox, run, write
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def python(sandbox: Sandbox, program: str) -> tuple[int, str]:
    """Run a Python program in a sandbox; return its exit status and output."""
    await write(sandbox, "program.py", program)
    return await run(sandbox, "python3 program.py 2>&1")


@pytest.mark.parametrize(
    "expression",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))",
        "socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))",
        "socket.socket(40, socket.SOCK_STREAM)",  # vsock, which reaches a hypervisor
    ],
)
async def test_raw_and_packet_sockets_are_refused(sandbox: Sandbox, expression: str) -> None:
    code, output = await python(sandbox, f"import socket\n{expression}\n")
    assert code == 1 and ("Operation not permitted" in output or "not supported" in output), output


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /tmp",
        "unshare --mount mount -t tmpfs none /tmp",
        "unshare --user --map-root-user --mount mount -t tmpfs none /home",
        "unshare --user --map-root-user --mount mount --bind / /tmp",
        "unshare --user --map-root-user --mount --pid --fork mount -t proc proc /proc",
        "unshare --user --map-root-user umount /etc/hosts",
        "unshare --user --map-root-user chroot / mknod /tmp/device b 254 0",
        "unshare --user --map-root-user ip link add dummy0 type dummy",
        "nsenter --target 1 --mount true",
        "mknod /tmp/device b 254 0",
        "echo 1 > /proc/sysrq-trigger",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /sys/kernel/uevent_helper",
        "echo x > /sys/fs/cgroup/release_agent",
        "dmesg",
        "touch /usr/bin/new",
        "touch /etc/new",
        "ls /var/run/docker.sock",
        "chroot / true",
        "su -c true",
        "setpriv --reuid 0 true",
        "date -s 2001-01-01",
        "hostname other",
    ],
)
async def test_privileged_command_fails(sandbox: Sandbox, command: str) -> None:
    code, output = await run(sandbox, f"({command}) 2>&1 </dev/null")
    assert code != 0, output


async def test_own_network_namespace_cannot_reach_the_host(engine: EngineSandbox, sandbox: Sandbox) -> None:
    gateway = engine.gateway()
    code, output = await run(
        sandbox, f"unshare --user --map-root-user --net curl -sS --max-time 5 http://{gateway}/ 2>&1"
    )
    assert code != 0, output


async def test_first_process_and_its_token_cannot_be_read(sandbox: Sandbox) -> None:
    program = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print('attached', libc.ptrace(16, 1, 0, 0))\n"
        "for name in ('environ', 'mem', 'maps', 'fd', 'auxv'):\n"
        "    path = f'/proc/1/{name}'\n"
        "    try:\n"
        "        print(name, os.listdir(path) if name == 'fd' else open(path, 'rb').read(1))\n"
        "    except OSError as error:\n"
        "        print(name, type(error).__name__)\n"
    )
    code, output = await python(sandbox, program)
    assert code == 0
    assert output.splitlines() == [
        "attached -1",
        *(f"{n} PermissionError" for n in ("environ", "mem", "maps", "fd", "auxv")),
    ]
    with pytest.raises(SandboxFailure):
        await sandbox.file_read("/proc/1/environ", start=None, end=None, sudo=False)


async def test_dangerous_system_calls_are_refused(sandbox: Sandbox) -> None:
    numbers = {
        "bpf": 321,
        "perf_event_open": 298,
        "keyctl": 250,
        "add_key": 248,
        "kexec_load": 246,
        "init_module": 175,
        "userfaultfd": 323,
        "open_by_handle_at": 304,
        "io_uring_setup": 425,
        "process_vm_readv": 310,
        "swapon": 167,
        "reboot": 169,
        "mount": 165,
        "pivot_root": 155,
        "acct": 163,
    }
    if os.uname().machine != "x86_64":
        pytest.skip("the system call numbers are those of x86-64")
    program = (
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {numbers!r}.items():\n"
        "    ctypes.set_errno(0)\n"
        "    print(name, libc.syscall(number, 0, 0, 0, 0, 0), errno.errorcode.get(ctypes.get_errno()))\n"
    )
    code, output = await python(sandbox, program)
    assert code == 0
    for line in output.splitlines():
        assert line.split()[1:] in (["-1", "EPERM"], ["-1", "ENOSYS"]), line


async def test_writes_outside_the_workspace_and_file_sizes_are_limited(sandbox: Sandbox) -> None:
    try:
        for folder in ("/tmp", "/var/tmp", "/dev/shm"):
            code, output = await run(
                sandbox, f"head -c 2G /dev/zero 2>&1 >{folder}/full; du --block-size=M {folder}/full"
            )
            assert "No space left" in output and int(output.splitlines()[-1].split("M")[0]) <= 256, output
        # All of them are in memory. The sandbox goes on while they are full.
        assert await run(sandbox, "echo on") == (0, "on\n")
    finally:
        await run(sandbox, "rm -f /tmp/full /var/tmp/full /dev/shm/full")
    code, output = await run(sandbox, "truncate -s 9G huge 2>&1 || fallocate -l 9G huge 2>&1")
    assert code != 0 and (await run(sandbox, "stat -c %s huge"))[1].strip() in ("0", ""), output
    await run(sandbox, "rm -f huge")


async def test_process_over_memory_limit_is_killed_and_sandbox_goes_on(sandbox: Sandbox) -> None:
    code, _ = await python(sandbox, "x = bytearray(3 << 30); print(len(x))")
    assert code in (1, 137)
    assert await run(sandbox, "echo on") == (0, "on\n")


async def test_fork_bomb_is_limited_and_its_sandbox_can_be_destroyed(
    engine: EngineSandbox, provider: DockerSandboxes, sandbox: Sandbox
) -> None:
    session = engine.new_session()
    bombed = await provider.acquire(session)
    await bombed.shell_exec("bomb", "", "bomb() { bomb | bomb & }; bomb")

    def processes() -> int:
        return engine.api.stats(engine.name(session), stream=False, one_shot=True)["pids_stats"]["current"]

    await eventually(lambda: processes() > 900)
    assert processes() <= 1024
    # Another sandbox and the machine are not affected.
    started = time.monotonic()
    assert await run(sandbox, "echo on") == (0, "on\n")
    assert subprocess.run(["/bin/true"], timeout=5).returncode == 0
    assert time.monotonic() - started < 10
    await provider.destroy(session)
    assert not engine.has_container(session)


async def test_busy_sandbox_uses_no_more_than_its_cpu_limit(engine: EngineSandbox, sandbox: Sandbox) -> None:
    await sandbox.shell_exec("busy", "", "for n in 1 2 3 4; do (while :; do :; done) & done; wait")
    try:
        # The second call takes about a second: without `one_shot`, the engine waits for another sample.
        before = await asyncio.to_thread(engine.api.stats, sandbox.instance_id, stream=False, one_shot=True)
        after = await asyncio.to_thread(engine.api.stats, sandbox.instance_id, stream=False)
        used = after["cpu_stats"]["cpu_usage"]["total_usage"] - before["cpu_stats"]["cpu_usage"]["total_usage"]
        available = after["cpu_stats"]["system_cpu_usage"] - before["cpu_stats"]["system_cpu_usage"]
        cpus = used / available * after["cpu_stats"]["online_cpus"]
        assert 0.05 < cpus < 1.2
    finally:
        await sandbox.shell_kill("busy")
