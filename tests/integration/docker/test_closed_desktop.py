"""What the agent's user can do to the browser and the desktop of its sandbox: use results, but not control them."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser, async_playwright

from tests.integration.docker.test_image import HARDENED, TOKEN, ImageContainer, docker, image_container
from tests.support.eventually import wait_until

PARENT = "/home/ubuntu/.config/anker-browser"
PROFILE = f"{PARENT}/profile"

PROBES = """
import ctypes, glob, os, signal, socket, struct, subprocess

def attempt(name, action):
    try:
        result = action()
    except (OSError, subprocess.SubprocessError) as error:
        result = None
    if result:
        print("OPEN", name, result)

def pids(name):
    return [int(pid) for pid in subprocess.run(["pgrep", "-x", name], capture_output=True, text=True).stdout.split()]

def x11(address):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    for name, cookie in ((b"", b""), (b"MIT-MAGIC-COOKIE-1", bytes(16))):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        head = struct.pack("<BxHHHH2x", 0x6C, 11, 0, len(name), len(cookie))
        connection.sendall(head + name + bytes(-len(name) % 4) + cookie)
        answer = connection.recv(100)
        if answer[:1] == b"\\1":
            return "accepted"
        print("refused", address, name)

def system_call(number, *arguments):
    return ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) >= 0

owners = {}
for name in ("chromium", "jwm", "Xvnc"):
    assert pids(name), name
    for pid in pids(name):
        for entry in ("environ", "mem", "maps", "auxv"):
            attempt(f"{name} {entry}", lambda: len(open(f"/proc/{pid}/{entry}", "rb").read(1)) or True)
        for entry in ("fd", "map_files", "task/%d/fd" % pid):
            attempt(f"{name} {entry}", lambda: os.listdir(f"/proc/{pid}/{entry}"))
        for number in (0, 1, 3, 4, 5):
            attempt(f"{name} fd {number}", lambda: os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR))
        for entry in ("root", "cwd", "exe"):
            attempt(f"{name} {entry}", lambda: os.readlink(f"/proc/{pid}/{entry}"))
        attempt(f"{name} signal", lambda: os.kill(pid, signal.SIGTERM) or True)
        attempt(f"{name} ptrace", lambda: system_call(101, 16, pid, 0, 0))
        handle = os.pidfd_open(pid)
        for number in range(6):
            attempt(f"{name} pidfd_getfd", lambda: system_call(438, handle, number, 0))
        attempt(f"{name} process_vm_readv", lambda: system_call(310, pid, 0, 0, 0, 0, 0) and False)
subprocess.run(["pkill", "chrom"])
subprocess.run(["pkill", "-KILL", "-f", "chromium"])
for path in glob.glob("/tmp/.X11-unix/X*"):
    attempt("X11 " + path, lambda: x11(path))
    attempt("X11 abstract", lambda: x11("\\0" + path))
attempt("remove X11", lambda: subprocess.run("rm -rf /tmp/.X11-unix/X*", shell=True, check=True) and False)
for line in open("/proc/net/unix").read().splitlines()[1:]:
    path = line.split()[7:]
    if path and path[0].endswith("/vnc"):
        attempt("VNC", lambda: socket.socket(socket.AF_UNIX).connect(path[0]) or True)
        print("vnc", path[0])
for folder in (glob.glob("/tmp/anker-[bd]*") + glob.glob("/run/anker/anker-desktop-*") + ["PROFILE"]):
    attempt("folder " + folder, lambda: os.listdir(folder) or True)
for name in ("Default/Cookies", "Default/Preferences", "Local State"):
    attempt("profile " + name, lambda: open(f"PROFILE/{name}", "rb"))
attempt("write into the profile", lambda: open("PROFILE/x", "w"))
for line in open("/proc/net/tcp").readlines()[1:] + open("/proc/net/tcp6").readlines()[1:]:
    if line.split()[3] == "0A":
        print("listens", int(line.split()[1].partition(":")[2], 16))
""".replace("PROFILE", PROFILE)


@pytest.fixture(scope="module")
def shared(docker_ready: None) -> Iterator[ImageContainer]:
    """A container for all tests that leave it ready for the next one."""
    with image_container(*HARDENED) as made:
        made.wait_until_ready()
        yield made


@contextlib.asynccontextmanager
async def driven(container: ImageContainer) -> AsyncIterator[Browser]:
    """Connect to the container's browser as the service does."""
    async with async_playwright() as playwright:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        yield await playwright.chromium.connect_over_cdp(
            f"http://{container.address}/cdp", headers=headers, no_defaults=True
        )


def test_agent_cannot_reach_browser_and_desktop(shared: ImageContainer) -> None:
    before = shared.run("pgrep -x chromium; pgrep -x Xvnc; pgrep -x jwm")
    found = shared.python(PROBES).splitlines()
    assert [line for line in found if line.startswith("OPEN")] == []
    assert [line for line in found if line.startswith("vnc")], found
    assert len([line for line in found if line.startswith("refused")]) >= 2, found
    listening = {line for line in found if line.startswith("listens")}
    assert listening <= {"listens 49171"} | {line for line in listening if is_docker_resolver(line)}
    assert shared.run("pgrep -x chromium; pgrep -x Xvnc; pgrep -x jwm").split()[0] == before.split()[0]
    assert set(before.split()) & set(shared.run("pgrep -x chromium").split())


def is_docker_resolver(line: str) -> bool:
    """Return whether a listening port may be that of the engine's DNS server, which is random."""
    return int(line.split()[1]) > 30_000 and line != "listens 49171"


async def test_file_of_workspace_opens_and_uploads(shared: ImageContainer) -> None:
    shared.run("mkdir -p site && echo '<title>mine</title><input type=file>' > site/index.html && echo secret > up.txt")
    async with driven(shared) as browser:
        page = await browser.contexts[0].new_page()
        await page.goto("file:///home/ubuntu/site/index.html")
        assert await page.title() == "mine"
        session = await browser.contexts[0].new_cdp_session(page)
        document = await session.send("DOM.getDocument")
        found = await session.send("DOM.querySelector", {"nodeId": document["root"]["nodeId"], "selector": "input"})
        await session.send("DOM.setFileInputFiles", {"nodeId": found["nodeId"], "files": ["/home/ubuntu/up.txt"]})
        assert await page.evaluate("document.querySelector('input').files[0].text()") == "secret\n"
        await page.close()


@pytest.mark.parametrize("behavior", ["selected", "default"])
async def test_agent_owns_what_the_browser_downloads(shared: ImageContainer, behavior: str) -> None:
    async with driven(shared) as browser:
        folder = "/home/ubuntu/Downloads"
        session = await browser.new_browser_cdp_session()
        for number in range(3):
            if behavior == "selected":
                folder = f"/home/ubuntu/Downloads/{number + 2}"
                options = {"behavior": "allow", "downloadPath": folder, "eventsEnabled": True}
                await session.send("Browser.setDownloadBehavior", options)
            page = await browser.contexts[0].new_page()
            await page.set_content(f"<a download='tool{number}.sh' href='data:text/plain,echo works'>get</a>")
            await page.click("a")
            path = f"{folder}/tool{number}.sh"
            wait_until(lambda path=path: shared.run(f"stat -c %U {path} 2>&1 || true") == "ubuntu\n", message=path)
            assert shared.run(f"chmod +x {path} && mv {path} ~/moved && ./moved && rm moved") == "works\n"
            shared.run(f"touch {folder}/mine && rm -rf ~/Downloads/* && ls -A ~/Downloads")
            await page.close()


async def test_download_works_after_agent_removed_the_folder(shared: ImageContainer) -> None:
    async with driven(shared) as browser:
        session = await browser.new_browser_cdp_session()
        shared.run("rm -rf ~/Downloads")
        options = {"behavior": "allow", "downloadPath": "/home/ubuntu/Downloads", "eventsEnabled": True}
        await session.send("Browser.setDownloadBehavior", options)
        page = await browser.contexts[0].new_page()
        await page.set_content("<a download='again.txt' href='data:text/plain,again'>get</a>")
        await page.click("a")
        wait_until(lambda: shared.run("cat ~/Downloads/again.txt 2>&1 || true") == "again")
        await page.close()


def test_folders_that_the_agent_uses_are_not_taken_by_the_browser(shared: ImageContainer) -> None:
    found = shared.run("find ~ -xdev -user browser -not -path '*/anker-browser/*' 2>/dev/null || true")
    assert found == ""
    shared.run("mkdir -p ~/.cache/x ~/.local/share/x ~/.config/x")


async def test_logins_survive_and_planted_profile_is_not_used(docker_ready: None) -> None:
    with image_container(*HARDENED) as made:
        made.wait_until_ready()

        async def cookies() -> list[str]:
            async with driven(made) as browser:
                return [each["name"] for each in await browser.contexts[0].cookies()]

        async with driven(made) as browser:
            cookie = {"name": "login", "value": "x", "domain": "site.example", "path": "/", "expires": 4_000_000_000}
            await browser.contexts[0].add_cookies([cookie])
        docker("stop", "--time", "10", made.name)
        made.recreate(*HARDENED)
        made.wait_until_ready()
        assert await cookies() == ["login"]
        # The agent cannot remove or read the profile, but it can move the folder around it.
        assert "Permission denied" in made.run(f"rm -rf {PROFILE} 2>&1 || true")
        made.run(f"mv {PARENT} ~/stolen && mkdir -p {PROFILE}/Default && chmod -R 777 {PARENT}")
        assert made.run("cat ~/stolen/profile/Default/Cookies 2>&1 || true").endswith("Permission denied\n")
        assert made.request("/api/v1/browser/restart", {})["success"]
        assert await cookies() == []
        assert made.run(f"stat -c '%U %a' {PROFILE}") == "browser 700\n"
        made.run(f"mv {PARENT} ~/second && mkdir -p {PARENT} && ln -s /home/ubuntu/stolen/profile {PROFILE}")
        assert made.request("/api/v1/browser/restart", {})["success"]
        assert await cookies() == []
        assert made.run(f"stat -c '%F %U' {PROFILE}") == "directory browser\n"
        made.run("mv ~/.config ~/other; touch ~/.config")
        assert made.request("/api/v1/browser/restart", {})["success"]
        assert made.status()["browser"]["ready"]
