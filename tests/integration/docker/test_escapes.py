"""Attempts to break out, or to use up what others need, as a model's command would make them: from a shell inside."""

import asyncio
import os
import subprocess
import time
from typing import Any

import pytest

from app.domain.errors import SandboxFailure
from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.site import Site, run
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def python(sandbox: Sandbox, program: str) -> tuple[int, str]:
    """Run a Python program in a sandbox."""
    await sandbox.file_write("program.py", program, append=False, sudo=False)
    return await run(sandbox, "python3 program.py 2>&1")


@pytest.mark.parametrize(
    "opened",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))",
        "socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))",
        "socket.socket(40, socket.SOCK_STREAM)",  # vsock: the way to a hypervisor
    ],
)
async def test_packets_cannot_be_forged_nor_others_overheard(box: Sandbox, opened: str) -> None:
    code, words = await python(box, f"import socket\n{opened}\n")
    assert code == 1 and ("Operation not permitted" in words or "not supported" in words), words


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
async def test_what_only_the_owner_of_a_machine_may_do_fails(box: Sandbox, command: str) -> None:
    code, words = await run(box, f"({command}) 2>&1 </dev/null")
    assert code != 0, words


async def test_a_network_of_ones_own_making_leads_nowhere(here: Site, box: Sandbox) -> None:
    gateway = here.api.inspect_network(here.network)["IPAM"]["Config"][0]["Gateway"]
    code, words = await run(box, f"unshare --user --map-root-user --net curl -sS --max-time 5 http://{gateway}/ 2>&1")
    assert code != 0, words


async def test_the_first_process_and_its_token_are_out_of_reach(box: Sandbox) -> None:
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
    code, words = await python(box, program)
    assert code == 0
    assert words.splitlines() == [
        "attached -1",
        *(f"{n} PermissionError" for n in ("environ", "mem", "maps", "fd", "auxv")),
    ]
    with pytest.raises(SandboxFailure):
        await box.file_read("/proc/1/environ", start=None, end=None, sudo=False)


async def test_system_calls_that_reach_into_the_kernel_are_closed(box: Sandbox) -> None:
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
        pytest.skip("the numbers are those of x86-64")
    program = (
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {numbers!r}.items():\n"
        "    ctypes.set_errno(0)\n"
        "    print(name, libc.syscall(number, 0, 0, 0, 0, 0), errno.errorcode.get(ctypes.get_errno()))\n"
    )
    code, words = await python(box, program)
    assert code == 0
    for line in words.splitlines():
        assert line.split()[1:] in (["-1", "EPERM"], ["-1", "ENOSYS"]), line


async def test_what_is_written_beyond_the_workspace_is_bounded(here: Site, box: Sandbox) -> None:
    await run(box, "true")
    try:
        for folder in ("/tmp", "/var/tmp", "/dev/shm"):
            code, words = await run(box, f"head -c 2G /dev/zero 2>&1 >{folder}/full; du --block-size=M {folder}/full")
            assert "No space left" in words and int(words.splitlines()[-1].split("M")[0]) <= 256, words
        # With all of them full, all of it in memory, the sandbox goes on.
        assert await run(box, "echo on") == (0, "on\n")
    finally:
        await run(box, "rm -f /tmp/full /var/tmp/full /dev/shm/full")
    code, words = await run(box, "truncate -s 9G huge 2>&1 || fallocate -l 9G huge 2>&1")
    assert code != 0 and (await run(box, "stat -c %s huge"))[1].strip() in ("0", ""), words
    await run(box, "rm -f huge")


async def test_who_takes_too_much_memory_is_ended_and_the_sandbox_goes_on(box: Sandbox) -> None:
    code, _ = await python(box, "x = bytearray(3 << 30); print(len(x))")
    assert code in (1, 137)
    assert await run(box, "echo on") == (0, "on\n")


async def test_a_fork_bomb_stays_inside_and_can_be_ended(here: Site, service: DockerSandboxes, box: Sandbox) -> None:
    session = here.session()
    bombed = await service.acquire(session)
    await bombed.shell_exec("bomb", "", "bomb() { bomb | bomb & }; bomb")

    def processes() -> int:
        return here.api.stats(here.name(session), stream=False, one_shot=True)["pids_stats"]["current"]

    await eventually(lambda: processes() > 900)
    assert processes() <= 1024
    # The neighbour and the machine do not notice.
    begun = time.monotonic()
    assert await run(box, "echo on") == (0, "on\n")
    assert subprocess.run(["/bin/true"], timeout=5).returncode == 0
    assert time.monotonic() - begun < 10
    await service.destroy(session)
    assert here.container(session) is None


async def test_a_busy_sandbox_takes_no_more_than_its_share(here: Site, box: Sandbox) -> None:
    await box.shell_exec("busy", "", "for n in 1 2 3 4; do (while :; do :; done) & done; wait")
    try:
        used: list[dict[str, Any]] = []
        for _ in range(2):
            used.append(await asyncio.to_thread(here.api.stats, box.instance_id, stream=False))
        spent = used[1]["cpu_stats"]["cpu_usage"]["total_usage"] - used[0]["cpu_stats"]["cpu_usage"]["total_usage"]
        whole = used[1]["cpu_stats"]["system_cpu_usage"] - used[0]["cpu_stats"]["system_cpu_usage"]
        share = spent / whole * used[1]["cpu_stats"]["online_cpus"]
        assert 0.05 < share < 1.2
    finally:
        await box.shell_kill("busy")
