"""The sandbox image, run with the options that the provider uses: its processes, its tools and its restrictions."""

import base64
import contextlib
import io
import json
import os
import secrets
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator

import pytest
from PIL import Image
from playwright.async_api import Page, async_playwright

from app.infrastructure.sandbox.docker.container_spec import CAPABILITIES
from tests.integration.docker.engine_sandbox import IMAGE, ROOT
from tests.support.eventually import wait_until

SECCOMP = ROOT / "app/infrastructure/sandbox/docker/seccomp.json"
TOKEN = "the-token-of-this-test"

TMPFS = {
    "/tmp": "rw,nosuid,nodev,exec,size=256m,mode=1777",
    "/run": "rw,nosuid,nodev,size=16m,mode=1777",
    "/run/anker": "rw,nosuid,nodev,noexec,size=64m,mode=711",
    "/var/tmp": "rw,nosuid,nodev,exec,size=64m,mode=1777",
}
LIMITED = [
    *("--cap-drop=ALL", "--security-opt", f"seccomp={SECCOMP}", "--pids-limit", "1024"),
    *("--memory", "1g", "--memory-swap", "1g", "--cpus", "1", "--shm-size", "256m", "--ulimit", "nofile=8192:8192"),
    *(part for path, options in TMPFS.items() for part in ("--tmpfs", f"{path}:{options}")),
]
HARDENED = [
    *LIMITED,
    *("--read-only", "--security-opt", "no-new-privileges"),
    *(f"--cap-add={name}" for name in CAPABILITIES),
]
WITH_ROOT = [
    *("--security-opt", f"seccomp={SECCOMP}", "--pids-limit", "1024", "--memory", "1g", "--memory-swap", "1g"),
    *("--cpus", "1", "--shm-size", "256m", "-e", "SANDBOX_SUDO=true"),
]


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0 or not check, (arguments, done.stderr)
    return done.stdout.strip()


class ImageContainer:
    """A container of the image with a workspace of its own, and a client of its API."""

    def __init__(self, *options: str) -> None:
        self.name = f"anker-image-test-{secrets.token_hex(4)}"
        self._run(*options)

    def _run(self, *options: str) -> None:
        volume = ("-v", f"{self.name}:/home/ubuntu")
        environment = ("-e", f"SANDBOX_TOKEN={TOKEN}", "-e", "SANDBOX_EXEC_SECONDS=90")
        docker("run", "-d", "--name", self.name, *volume, *environment, *options, IMAGE)
        found = json.loads(docker("inspect", self.name))[0]
        self.address = f"{found['NetworkSettings']['IPAddress']}:49171"

    def recreate(self, *options: str) -> None:
        """Replace the container by a new one with the same workspace."""
        docker("rm", "-f", self.name)
        self._run(*options)

    def remove(self) -> None:
        docker("rm", "-f", self.name, check=False)
        docker("volume", "rm", "-f", self.name, check=False)

    def request(self, path: str, body: dict | None = None, token: str = TOKEN, seconds: float = 120) -> dict:
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(request, timeout=seconds) as response:
                    return json.load(response)
            except urllib.error.HTTPError as refused:
                return json.load(refused) | {"status": refused.code}
            except ConnectionError:
                assert time.monotonic() < deadline, docker("logs", self.name)
            except urllib.error.URLError as error:
                assert isinstance(error.reason, ConnectionError) and time.monotonic() < deadline, error

    def run(self, command: str, shell: str = "a") -> str:
        """Run `command`, which must succeed; return its output."""
        data = self.request("/api/v1/shell/exec", {"id": shell, "exec_dir": "", "command": command})["data"]
        assert data["status"] == "completed" and data["returncode"] == 0, data["output"]
        return data["output"]

    def python(self, program: str) -> str:
        """Run a Python program; return its output."""
        encoded = base64.b64encode(program.encode()).decode()
        return self.run(f"python3 -c \"import base64; exec(base64.b64decode('{encoded}'))\"")

    def status(self) -> dict:
        return self.request("/api/v1/status")["data"]

    def wait_until_ready(self) -> None:
        wait_until(lambda: all(self.status()[part]["ready"] for part in ("shell", "browser", "desktop")))

    def state(self) -> dict:
        return json.loads(docker("inspect", self.name))[0]["State"]

    def process_arguments(self) -> set[str]:
        """Return every command-line argument of every process."""
        return set(self.run("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | sort -u").split())


@contextlib.contextmanager
def image_container(*options: str) -> Iterator[ImageContainer]:
    made = ImageContainer(*options)
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def shared(docker_ready) -> Iterator[ImageContainer]:
    """A container for all tests that leave it ready for the next one."""
    with image_container(*HARDENED) as made:
        made.wait_until_ready()
        yield made


@pytest.fixture
def container(docker_ready) -> Iterator[ImageContainer]:
    """A container that the test may stop."""
    with image_container(*HARDENED) as made:
        yield made


@contextlib.asynccontextmanager
async def browser_page(container: ImageContainer) -> AsyncIterator[Page]:
    """Yield a new page of the container's browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(
            f"http://{container.address}/cdp", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        page = await browser.contexts[0].new_page()
        yield page
        await page.close()


# Processes


def test_program_browser_and_commands_run_as_three_users(shared):
    assert shared.run("cat /proc/1/cmdline | tr '\\0' ' '") == "/opt/anker/bin/python -I -m sandbox "
    found = [line.split() for line in shared.run("ps -eo user=,comm=").splitlines()]
    assert {name for user, name in found if user == "anker"} == {"python", "Xvnc"}
    assert {name for user, name in found if user == "browser"} >= {"chromium", "jwm"}
    assert {user for user, _ in found} == {"anker", "browser", "ubuntu"}
    assert shared.run("id -u; id -g; echo $HOME; pwd") == "1000\n1000\n/home/ubuntu\n/home/ubuntu\n"


def test_only_port_49171_listens_beyond_loopback(shared):
    program = """
import glob
for name in ("tcp", "tcp6", "udp", "udp6"):
    for line in open(f"/proc/net/{name}").readlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        address, port = local.split(":")
        if state in ("0A", "07") and not (name == "tcp" and address.endswith("7F")) and address != "0100007F":
            print(name, address, int(port, 16))
"""
    assert shared.python(program) == "tcp 00000000 49171\n"


async def test_chromium_runs_with_its_own_sandbox(shared):
    renderers = shared.run("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c -- --type=renderer")
    assert int(renderers) >= 1
    assert "--no-sandbox" not in shared.process_arguments()
    program = """
import os
own = os.readlink("/proc/self/ns/user")
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if b"--type=" b"renderer" not in open(f"/proc/{pid}/cmdline", "rb").read():
            continue
        status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
        print(os.readlink(f"/proc/{pid}/ns/user") != own, len(status["NSpid"].split()) > 1,
              status["Seccomp"].strip(), int(status["Seccomp_filters"]) > 1, int(status["CapEff"], 16))
    except (FileNotFoundError, ProcessLookupError):
        continue
"""
    # Own user and process namespaces, a second seccomp filter, and no capabilities. A renderer that has just started
    # adds the filter before it runs any page.
    look = ("exec", "-u", "browser", shared.name, "python3", "-c", program)
    wait_until(lambda: set(docker(*look).splitlines()) == {"True True 2 True 0"})
    async with browser_page(shared) as page:
        await page.goto("chrome://sandbox")
        text = await page.inner_text("body")
    assert "You are adequately sandboxed." in text, text


def test_chromium_without_user_namespaces_runs_unsandboxed_with_warning(docker_ready):
    # The engine's default profile allows no user namespaces.
    place = HARDENED.index(f"seccomp={SECCOMP}")
    options = HARDENED[: place - 1] + HARDENED[place + 1 :]
    with image_container(*options) as made:
        made.wait_until_ready()
        assert "--no-sandbox" in made.process_arguments()
        log = subprocess.run(["docker", "logs", made.name], capture_output=True, text=True)
        assert "does not let Chromium make its own sandbox" in log.stderr


async def test_fonts_cover_common_scripts_and_emoji(shared):
    async with browser_page(shared) as page:
        await page.goto("about:blank")
        # A missing glyph looks like that of the first character, which no font has.
        drawn = await page.evaluate(
            """letters => letters.map(letter => {
                const canvas = document.createElement('canvas');
                canvas.width = canvas.height = 48;
                const pen = canvas.getContext('2d');
                pen.font = '32px sans-serif';
                pen.fillText(letter, 4, 40);
                return canvas.toDataURL();
            })""",
            ["\U000f1234", "漢", "字", "か", "한", "😀", "🚀", "ß", "Ж", "Ω"],
        )
    assert len(set(drawn)) == len(drawn)


def test_desktop_shows_the_browser_in_full_size(shared):
    def shows_white_page() -> bool:
        frame = VncViewer(shared.address).frame()
        assert len(frame) == 1280 * 800 * 4
        return frame.count(b"\xff\xff\xff") > 1280 * 800 * 0.5

    wait_until(shows_white_page)


@pytest.mark.parametrize("victim", ["Xvnc", "jwm", "chromium"])
def test_killed_process_is_restarted(shared, victim):
    shared.wait_until_ready()
    before = shared.run(f"pgrep -x -o {victim}")
    docker("exec", "-u", "anker" if victim == "Xvnc" else "browser", shared.name, "pkill", "-KILL", "-x", "-o", victim)
    wait_until(lambda: shared.run(f"pgrep -x -o {victim} || true") not in ("", before))
    shared.wait_until_ready()


def test_browser_restart_leaves_no_old_process(shared):
    shared.wait_until_ready()
    before = set(shared.run("pgrep -x chromium").split())
    assert shared.request("/api/v1/browser/restart", {})["success"]
    assert shared.status()["browser"]["ready"]
    assert before & set(shared.run("pgrep -x chromium").split()) == set()


# Duties of the first process


def test_orphaned_processes_are_reaped_before_the_process_limit(shared):
    assert shared.run("for n in $(seq 4000); do (true &); done; echo done") == "done\n"
    wait_until(lambda: int(shared.run("ps -eo stat= | grep -c ^Z || true")) == 0)


def test_sigterm_ends_container_within_two_seconds_with_status_0(container):
    container.wait_until_ready()
    container.run("(trap '' TERM; sleep 900) & disown")
    started = time.monotonic()
    docker("stop", "--time", "10", container.name)
    assert time.monotonic() - started < 2
    state = container.state()
    assert state["ExitCode"] == 0 and not state["OOMKilled"]


def test_idle_container_ends_itself_despite_status_requests(docker_ready):
    with image_container(*HARDENED, "-e", "SANDBOX_IDLE_SECONDS=2") as made:
        made.run("true")
        status = urllib.request.Request(
            f"http://{made.address}/api/v1/status", headers={"Authorization": f"Bearer {TOKEN}"}
        )

        def has_ended() -> bool:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(status, timeout=1)
            return not made.state()["Running"]

        wait_until(has_ended)
        assert made.state()["ExitCode"] == 0


def test_token_is_known_to_the_first_process_only(shared):
    shared.run("sleep 100 & disown")
    program = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if b"the-token-of-this-test" in open(f"/proc/{pid}/environ", "rb").read():
            print("known to", pid)
    except PermissionError:
        print("closed", pid)
    except (FileNotFoundError, ProcessLookupError):
        continue
"""
    closed = shared.python(program)
    assert "known" not in closed and "closed 1\n" in closed
    assert shared.run("cat /proc/1/environ 2>&1 || true") == "cat: /proc/1/environ: Permission denied\n"
    assert shared.run("grep -c the-token /proc/1/cmdline || true") == "0\n"


# Tools


def test_root_file_system_and_sandbox_program_are_read_only(shared):
    for path in ("/opt/anker/x", "/opt/anker/lib/python3.11/site-packages/x", "/usr/local/bin/x", "/etc/x", "/x"):
        assert "Read-only file system" in shared.run(f"touch {path} 2>&1 || true")
    assert shared.run("find /opt/anker /usr /etc -xdev -writable ! -type l 2>/dev/null | head -3") == ""
    # The program is compiled, because Python cannot write its cache at run time.
    assert shared.run("ls /opt/anker/lib/python3.11/site-packages/sandbox/__pycache__ | grep -c main") != "0\n"


def test_pip_installs_into_the_workspace(shared):
    shared.run("pip install --quiet tabulate==0.9.0")
    assert shared.run("command -v tabulate") == "/home/ubuntu/.local/bin/tabulate\n"
    assert "1  2" in shared.run("echo 1 2 | tabulate")
    shared.run("python3 -m venv ~/venv && ~/venv/bin/pip install --quiet six && ~/venv/bin/python -c 'import six'")


def test_npm_installs_into_the_workspace(shared):
    shared.run("npm install --silent --global cowsay@1.6.0")
    assert shared.run("command -v cowsay") == "/home/ubuntu/.local/bin/cowsay\n"
    assert "< moo >" in shared.run("cowsay moo")
    assert int(shared.run("node --version").lstrip("v").split(".")[0]) >= 22


def test_native_packages_can_be_compiled(shared):
    shared.run("printf 'int main(){return 0;}' >~/x.c && gcc ~/x.c -o ~/x && ~/x && g++ -x c++ ~/x.c -o ~/y && ~/y")
    shared.run("pip install --quiet --no-build-isolation --no-binary setproctitle setproctitle==1.3.3 2>&1")
    shared.run("python3 -c 'import setproctitle'")
    assert ".so" in shared.run("ls ~/.local/lib/python3.11/site-packages/setproctitle")
    shared.run("mkdir -p ~/addon && cd ~/addon && npm init --yes && npm install --build-from-source bufferutil@4.1.0")
    shared.run("cd ~/addon && node -e 'require(\"bufferutil/build/Release/bufferutil.node\")'")


def test_common_tools_are_installed(shared):
    tools = (
        "bash curl wget git jq rg less ps file xz zip unzip tar gzip make gcc python python3 pip node npm npx ssh ping "
        "ss lsof fuser killall"
    )
    assert shared.run(f"for tool in {tools}; do command -v $tool >/dev/null || echo missing $tool; done") == ""
    shared.run(
        "git init -q ~/repository && cd ~/repository && git -c user.name=a -c user.email=a@b commit -qm x "
        "--allow-empty && git log --oneline | grep -q x"
    )
    assert "1 received" in shared.run("ping -c 1 -W 2 127.0.0.1")
    assert "lo" in shared.run("node -e 'console.log(Object.keys(os.networkInterfaces()).join())'")


def test_threads_processes_and_ipc_work(shared):
    program = """
import asyncio, multiprocessing, os, shutil, socket, sqlite3, subprocess, tempfile, threading
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
lock = multiprocessing.Lock()
with lock:
    pass
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=100)
memory.close(); memory.unlink()
asyncio.run(asyncio.sleep(0))
assert socket.getaddrinfo("localhost", 80)
left, right = socket.socketpair()
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname())
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 4)
sqlite3.connect("/tmp/x.db").execute("create table t (x)")
assert subprocess.run(["true"]).returncode == 0
os.mkfifo("/tmp/fifo"); os.memfd_create("x"); os.pidfd_open(os.getpid()); os.sched_getaffinity(0)
print("fine")
"""
    assert shared.python(program) == "fine\n"


def test_files_of_root_need_sudo(docker_ready, shared):
    with image_container(*WITH_ROOT) as made:
        written = made.request("/api/v1/file/write", {"file": "/etc/of-root", "content": "hello\n", "sudo": True})
        assert written["success"], written
        assert made.run("stat -c '%U %a' /etc/of-root; sudo -n id -u") == "root 644\n0\n"
        made.run("sudo -n chmod 600 /etc/of-root")
        refused = made.request("/api/v1/file/read", {"file": "/etc/of-root"})
        assert refused["status"] == 400 and "permission denied" in refused["message"]
        file = {"file": "/etc/of-root", "sudo": True}
        assert made.request("/api/v1/file/read", file)["data"]["content"] == "hello\n"
        replaced = made.request("/api/v1/file/replace", {**file, "old_str": "hello", "new_str": "bye"})
        assert replaced["data"]["replaced_count"] == 1
        assert made.request("/api/v1/file/search", {**file, "regex": "b.e"})["data"]["matches"] == ["bye"]
        missing = made.request("/api/v1/file/read", {"file": "/root/none", "sudo": True})
        assert missing["status"] == 404 and missing["message"] == "no such file: /root/none"
        made.wait_until_ready()  # with sudo, the browser keeps its own sandbox too
        assert "--no-sandbox" not in made.process_arguments()
    refused = shared.request("/api/v1/file/read", {"file": "/etc/shadow", "sudo": True})
    assert refused["status"] == 400 and "there is no sudo" in refused["message"]
    assert "sudo: " in shared.run("sudo -n true 2>&1 || true")


def png(width: int, height: int) -> bytes:
    """Return a white PNG in RGBA."""
    file = io.BytesIO()
    Image.new("RGBA", (width, height), "white").save(file, "PNG")
    return file.getvalue()


def put(container: ImageContainer, content: bytes, path: str) -> None:
    subprocess.run(
        ["docker", "exec", "-iu", "ubuntu", container.name, "sh", "-c", f"cat > {path}"], input=content, check=True
    )


def test_picture_is_decoded_within_the_limits_of_a_container(shared):
    put(shared, png(10_000, 5_000), "large.png")  # beside the browser, it must fit into 1 GiB
    data = shared.request("/api/v1/file/image", {"file": "~/large.png"})["data"]
    assert (data["width"], data["height"], data["original_width"]) == (1024, 512, 10_000)
    put(shared, png(64, 64)[:100], "damaged.png")
    refused = shared.request("/api/v1/file/image", {"file": "~/damaged.png"})
    assert refused["status"] == 400 and "damaged" in refused["message"]


def test_picture_of_root_needs_sudo(docker_ready):
    with image_container(*WITH_ROOT) as made:
        made.request("/api/v1/status")
        put(made, png(64, 64), "/tmp/a.png")
        made.run("sudo -n install -m 600 -o root /tmp/a.png /root/a.png")
        assert made.request("/api/v1/file/image", {"file": "/root/a.png"})["status"] == 400
        data = made.request("/api/v1/file/image", {"file": "/root/a.png", "sudo": True})["data"]
        assert (data["width"], data["height"]) == (64, 64)
        made.run("sudo -n mkfifo /root/pipe")
        refused = made.request("/api/v1/file/image", {"file": "/root/pipe", "sudo": True})
        assert "pipe" in refused["message"]


async def test_cookies_survive_the_container(container):
    container.wait_until_ready()

    async def cookie(code: str) -> str:
        async with browser_page(container) as page:
            await page.route("**", lambda route: route.fulfill(body="<title>x</title>", content_type="text/html"))
            await page.goto("http://site.example/")
            return await page.evaluate(code)

    await cookie("document.cookie = 'login=yes; max-age=99999'")
    docker("stop", container.name)
    container.recreate(*HARDENED)
    container.wait_until_ready()
    assert await cookie("document.cookie") == "login=yes"


async def test_browser_stays_when_its_last_window_is_closed(container):
    container.wait_until_ready()
    async with browser_page(container) as page:
        browser = page.context.browser
        assert browser is not None
        session = await browser.new_browser_cdp_session()

        async def process() -> int:
            found = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
            return next(each["id"] for each in found if each["type"] == "browser")

        before = await process()
        for each in page.context.pages:
            await each.close()
        await page.context.new_page()
        assert await process() == before


# Restrictions (more in test_escapes.py)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the system call numbers are those of x86-64")
def test_own_user_namespace_gives_access_to_no_further_system_call(shared):
    """Chromium needs user namespaces, so every program can create one. It must not gain anything else by that."""
    program = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNS, NEWNET, NEWPID = 0x10000000, 0x00020000, 0x40000000, 0x20000000
def call(*arguments):
    ctypes.set_errno(0)
    return "open" if libc.syscall(*arguments) >= 0 else errno.errorcode[ctypes.get_errno()]
for flags in (NEWNS, NEWNET, NEWPID, NEWUSER | NEWNS, NEWUSER | NEWNET, 0x02000000, 0x04000000, 0x08000000, 0x80):
    print("unshare", hex(flags), call(272, flags))
for flags in (NEWUSER | NEWNS, NEWNS, NEWNET, NEWUSER | NEWNET):
    print("clone", hex(flags), call(56, flags | 17, 0, 0, 0, 0))
print("clone3", call(435, 0, 88))
print("setns", call(308, 0, 0))
print("user", call(272, NEWUSER))
print("caps", open("/proc/self/status").read().split("CapEff:")[1].split()[0] != "0" * 16)
for name, number in dict(mount=165, umount2=166, pivot_root=155, fsopen=430, open_tree=428, move_mount=429, bpf=321,
                         mount_setattr=442, perf_event_open=298, keyctl=250, ptrace=101, io_uring_setup=425,
                         userfaultfd=323, open_by_handle_at=304, process_vm_writev=311, init_module=175, kcmp=312,
                         pidfd_getfd=438, fanotify_init=300, swapon=167, syslog=103, add_key=248).items():
    print(name, call(number, 0, 0, 0, 0, 0))
def opened(*kind):
    try:
        socket.socket(*kind).close()
        return "open"
    except OSError as error:
        return errno.errorcode[error.errno]
for kind in ((17, 3), (2, 3, 1), (10, 3, 58), (16, 3, 12), (16, 3, 6), (40, 1), (38, 5), (2, 1, 132), (2, 5), (44, 3),
             (29, 3), (31, 3), (15, 3), (21, 5), (2, 2, 136), (2, 1, 262)):
    print("socket", *kind, opened(*kind))
plain = socket.socket()
for level, option in ((0, 64), (0, 65), (41, 64), (0, 96), (0, 128), (1 << 32, 64)):
    print("setsockopt", level, option, call(54, plain.fileno(), ctypes.c_long(level), option, b"x" * 200, 200))
"""
    lines = shared.python(program).splitlines()
    assert "user open" in lines and "caps True" in lines, "tried without a user namespace"
    allowed = {"user open", "caps True"}
    assert [line for line in lines if line not in allowed and line.split()[-1] not in ("EPERM", "ENOSYS")] == []


class VncViewer:
    """A blocking VNC client over a WebSocket that can read one frame."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        lines = (
            *("GET /vnc HTTP/1.1", f"Host: {address}", f"Authorization: Bearer {TOKEN}"),
            *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            *("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""),
        )
        self._socket.sendall("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._socket.recv(1)
        assert b" 101 " in head, head
        self._left = 0

    def frame(self) -> bytes:
        self._write(self._read(12))
        self._read(self._read(1)[0])
        self._write(b"\x01")
        self._read(4)
        self._write(b"\x01")
        width, height = struct.unpack(">HH", self._read(4))
        self._read(16)
        self._read(struct.unpack(">I", self._read(4))[0])
        self._write(struct.pack(">BxHi", 2, 1, 0))
        self._write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        while self._read(1) != b"\0":
            pass
        pixels = b""
        for _ in range(struct.unpack(">xH", self._read(3))[0]):
            _, _, across, down, _ = struct.unpack(">HHHHi", self._read(12))
            pixels += self._read(across * down * 4)
        self._socket.close()
        return pixels

    def _write(self, data: bytes) -> None:
        self._socket.sendall(bytes((0x82, 0x80 | len(data))) + bytes(4) + data)

    def _read(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            if not self._left:
                size = self._exactly(2)[1]
                self._left = size if size < 126 else int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
            part = self._exactly(min(self._left, count - len(taken)))
            self._left -= len(part)
            taken += part
        return taken

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            assert part, "the desktop closed the connection"
            data += part
        return data
