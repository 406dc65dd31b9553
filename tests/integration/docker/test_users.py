"""What the agent's user can do to the sandbox program: nothing. After each attack, every part still works."""

import secrets
import subprocess
import time
from collections.abc import Iterator

import pytest

from app.infrastructure.sandbox.docker.container_spec import SUDO_CAPABILITIES
from tests.integration.docker.engine_sandbox import IMAGE
from tests.integration.docker.test_image import (
    HARDENED,
    LIMITED,
    ImageContainer,
    VncViewer,
    browser_page,
    docker,
    image_container,
)


@pytest.fixture(scope="module")
def attacked(docker_ready: None) -> Iterator[ImageContainer]:
    """A container that all attacks share, so that they also add up."""
    with image_container(*HARDENED) as made:
        made.wait_until_ready()
        yield made


async def check_parts(container: ImageContainer) -> None:
    """Check that a shell, a file, the browser and the desktop work."""
    assert container.run("echo on; pwd", "check") == "on\n/home/ubuntu\n"
    content = f"{time.monotonic()}\n"
    assert container.request("/api/v1/file/write", {"file": "~/check.txt", "content": content})["success"]
    assert container.request("/api/v1/file/read", {"file": "~/check.txt"})["data"]["content"] == content
    container.wait_until_ready()
    async with browser_page(container) as page:
        assert await page.evaluate("1 + 1") == 2
    assert len(VncViewer(container.address).frame()) == 1280 * 800 * 4


ATTACKS = {
    "pkill python": "pkill python",
    "pkill -9 -f python": "pkill -9 -f '[p]ython'",
    "pkill -f sandbox": "pkill -9 -f '[s]andbox'",
    "ps and xargs": "ps aux | grep [p]ython | awk '{print $2}' | xargs kill -9",
    "killall": "killall -9 python3 python",
    "kill everything": "kill -9 -1",
    "terminate everything": "kill -TERM -1",
    "kill the first process": "kill 1; kill -9 1; kill -STOP 1; kill -INT 1; kill -HUP 1",
    "kill the threads of the first process": "cd /proc/1/task && for id in *; do kill -9 $id; done",
    "kill the owner of the port": "fuser -k -9 49171/tcp; kill -9 $(lsof -ti tcp:49171)",
    "limit the first process": "prlimit --pid 1 --nofile=1 --nproc=1 --as=1000000",
    "slow the first process": "renice -n 19 -p 1; taskset -p 0 1; chrt -i -p 0 1; ionice -c 3 -p 1",
    "slow its threads": "for id in $(ls /proc/1/task); do renice -n 19 -p $id; chrt -i -p 0 $id; done",
    "make it a victim": "echo 1000 >/proc/1/oom_score_adj; echo 9999999999 >/proc/1/timerslack_ns",
    "remove temporary files": "rm -rf /tmp/* /tmp/.[!.]* /run/* /var/tmp/* /dev/shm/*",
    "find temporary files": "find /tmp /run /var/tmp -mindepth 1 -delete",
    "find the files of the user": "find / -xdev -user ubuntu -path '/tmp/*' -delete; find /run -user ubuntu -delete",
    "change the state": "chmod -R 777 /run/anker; chattr +i /run/anker; chown -R ubuntu /run/anker",
    "move the state": "mv /run/anker /tmp/; ln -sfn /tmp /run/anker; rmdir /run/anker; mount -t tmpfs x /run/anker",
    "break the files of this shell": (
        'state=$(dirname "${PROMPT_COMMAND##* }"); rm -f $state/*; mv $state/fifo $state/x; '
        "echo exit >>$state/loop; echo >$state/fifo; mkfifo $state/new; chmod 000 $state $state/*; kill -9 $$"
    ),
    "close the workspace": "chmod 000 ~ && sleep 0.1 && chmod 755 ~",
    "fill memory file systems": (
        "for folder in /tmp /run /run/anker /var/tmp /dev/shm; do head -c 2G /dev/zero >$folder/full; done; "
        "for folder in /tmp /run /var/tmp; do for n in $(seq 2000); do : >$folder/inode-$n; done; done"
    ),
    "stop everything": "kill -STOP $(pgrep -u anker); kill -CONT $(pgrep -u anker)",
    "end the desktop": "pkill -9 Xvnc; kill -9 $(pgrep -u anker)",
    "take the terminal": "exec 9>/dev/ptmx; chmod 000 $(tty); stty -F $(tty) raw -echo 0; kill -9 $$",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
async def test_attack_of_users_commands_leaves_every_part_working(attacked: ImageContainer, attack: str) -> None:
    started = attacked.state()["StartedAt"]
    body = {"id": "attack", "exec_dir": "", "command": f"({ATTACKS[attack]}) 2>&1; {ATTACKS[attack]}"}
    attacked.request("/api/v1/shell/exec", body)
    try:
        await check_parts(attacked)
    finally:
        attacked.request("/api/v1/shell/kill_all", {"prefix": "attack"})
        docker("exec", "-u", "ubuntu", attacked.name, "sh", "-c", "rm -rf /tmp/* /var/tmp/* /dev/shm/*", check=False)
    assert attacked.state()["StartedAt"] == started


async def test_kill_of_everything_by_one_shell_is_told_in_the_others(attacked: ImageContainer) -> None:
    attacked.run("true", "other")
    attacked.run("kill -9 -1", "killer")
    body = {"id": "other", "exec_dir": "", "command": "echo on"}
    answer = attacked.request("/api/v1/shell/exec", body)
    assert answer["data"]["output"] == "on\n" and "a new one was started" in answer["message"]


async def test_connections_from_inside_do_not_use_up_the_programs_files(attacked: ImageContainer) -> None:
    program = """
import os, socket, time
os.fork()
kept = []
for _ in range(6000):
    one = socket.socket()
    one.settimeout(1)
    try:
        one.connect(("127.0.0.1", 49171))
        kept.append(one)
    except OSError:
        continue
time.sleep(600)
"""
    attacked.request("/api/v1/file/write", {"file": "flood.py", "content": program})
    attacked.run("python3 flood.py & sleep 5", "attack")
    try:
        await check_parts(attacked)
        refused = attacked.run("curl -s -o /dev/null http://127.0.0.1:49171/api/v1/status || echo refused", "b")
        assert refused == "refused\n"
    finally:
        attacked.request("/api/v1/shell/kill_all", {"prefix": "attack"})


@pytest.mark.parametrize("port", [3000, 5000, 8000, 8080])
def test_servers_of_tutorials_get_their_ports_and_are_found_by_tools(attacked: ImageContainer, port: int) -> None:
    attacked.run(
        f"mkdir -p ~/www; echo here >~/www/x; python3 -m http.server -d ~/www {port} >/dev/null 2>&1 &", "server"
    )
    try:
        attacked.run(f"until curl -fs http://localhost:{port}/x; do sleep 0.1; done | grep -x here")
        found = attacked.run(
            f"ss -Htln sport = :{port} 2>&1 | wc -l; lsof -ti tcp:{port} | wc -l; fuser {port}/tcp 2>&1 | wc -l"
        )
    finally:
        attacked.request("/api/v1/shell/kill", {"id": "server"})
    assert found == "1\n1\n1\n"


@pytest.mark.parametrize("path", ["/proc/1/environ", "/proc/self/environ", "/proc/self/mem", "/run/anker/x"])
def test_file_api_does_not_reach_the_program(attacked: ImageContainer, path: str) -> None:
    for call, more in (("read", {}), ("write", {"content": "x"}), ("image", {})):
        refused = attacked.request(f"/api/v1/file/{call}", {"file": path, **more})
        assert refused["status"] in (400, 404), refused
    assert attacked.request("/api/v1/file/list", {"path": "/proc/self"})["status"] == 400
    assert attacked.request(f"/api/v1/file/download?path={path}")["status"] == 400


def test_files_of_calls_belong_to_the_user(attacked: ImageContainer) -> None:
    attacked.request("/api/v1/file/write", {"file": "~/made/by-call", "content": "x"})
    attacked.run("umask 077; echo hidden >~/made/by-shell")
    assert attacked.run("stat -c '%U %G' ~/made ~/made/*") == "ubuntu ubuntu\n" * 3
    assert attacked.request("/api/v1/file/read", {"file": "~/made/by-shell"})["data"]["content"] == "hidden\n"


@pytest.mark.parametrize("lacking", ["ALL", "KILL", "SETUID", "user"])
def test_container_without_rights_is_refused_in_one_line(docker_ready: None, lacking: str) -> None:
    options = ["--user", "ubuntu"] if lacking == "user" else [f"--cap-drop={lacking}"]
    name = f"anker-image-test-{secrets.token_hex(4)}"
    done = subprocess.run(
        ["docker", "run", "--rm", "--name", name, "-e", "SANDBOX_TOKEN=t", *options, IMAGE],
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "with the capabilities CHOWN, KILL, SETGID and SETUID" in line


SUDO_ATTACKS = {
    "pkill python": "sudo pkill -9 -f python; sudo pkill python; sudo killall python",
    "signal the first process": (
        "for s in TERM INT HUP QUIT USR1 KILL STOP; do sudo kill -$s 1; sudo -u anker kill -$s 1; done"
    ),
    "kill everything": "sudo kill -9 -1",
    "remove temporary files": "sudo rm -rf /run/* /tmp/*",
    "remove files of a desktop that ends": "sudo rm -rf /run/* /tmp/*; sudo pkill -9 Xvnc",
}


async def test_with_sudo_root_cannot_end_the_program(docker_ready: None) -> None:
    capabilities = [f"--cap-add={name}" for name in SUDO_CAPABILITIES]
    with image_container(*LIMITED, *capabilities, "-e", "SANDBOX_SUDO=true") as container:
        container.wait_until_ready()
        started = container.state()["StartedAt"]
        for attack in SUDO_ATTACKS.values():
            container.request("/api/v1/shell/exec", {"id": "attack", "exec_dir": "", "command": attack})
            assert container.run("echo on; sudo id -u", "check") == "on\n0\n", attack
            assert container.request("/api/v1/file/write", {"file": "~/f", "content": "x"})["success"], attack
            container.wait_until_ready()
        assert container.state()["StartedAt"] == started
        began = time.monotonic()
        docker("stop", "--time", "10", container.name)
        assert time.monotonic() - began < 5 and container.state()["ExitCode"] == 0
