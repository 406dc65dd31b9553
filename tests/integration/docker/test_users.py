"""What the agent's user can do to the sandbox program: nothing. After each attack, every part still works."""

import time
from collections.abc import Iterator

import pytest

from tests.integration.docker.test_image import (
    HARDENED,
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
