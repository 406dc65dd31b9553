"""The file and shell API inside a real container: no call does more than the agent's own user may."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.fuzz.sandbox_calls import EXECUTIONS, SECONDS, Call, calls, check, setup_program
from tests.integration.docker.engine_sandbox import EngineSandbox, run, write
from tests.support.fuzzing import LONG, examples

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(40_000 if LONG else 300)]

LINKS = {
    "l-state": "/run/anker",
    "l-canary": "/run/anker/canary",
    "l-shadow": "/etc/shadow",
    "l-sudo": "/etc/sudoers.d",
}
PLACES = (
    *("/run/anker", "/run/anker/canary", "/proc/1", "/proc/1/environ", "/proc/self", "/proc/thread-self", "/dev/fd"),
    *("/etc/shadow", "/root", "/opt/anker", "/proc/1/task/1", "/dev/ptmx", "/dev/shm", "/tmp", "/proc/sys/kernel"),
    *("race/maps", "race/status", "race/environ", "race/canary", "race/fd", "race"),
)

RACE = """
import ctypes, os, time
libc = ctypes.CDLL(None)
for name in ("mine/fd",):
    os.makedirs(name, exist_ok=True)
for name in ("maps", "status", "environ", "canary"):
    with open(f"mine/{name}", "w") as file:
        file.write("mine")
os.path.lexists("race") or os.symlink("/proc/self", "race")
os.path.lexists("other") or os.symlink("/run/anker", "other")
while True:  # the names `race`, `mine` and `other` change places at once
    libc.renameat2(-100, b"race", -100, b"mine", 2)
    libc.renameat2(-100, b"mine", -100, b"other", 2)
    time.sleep(1e-5)
"""
"""Program of the agent that swaps a folder for links to the state of the sandbox's program, again and again."""

SIGNS = (b"[stack]", b"[heap]", b"NoNewPrivs", b"root:*:", b"SANDBOX_TOKEN")
"""Parts of what only the program itself, or root, may read."""


@dataclass(frozen=True)
class Box:
    """A container with canaries that its agent cannot read."""

    sandbox: Sandbox
    engine: EngineSandbox
    name: str
    canary: str
    client: httpx.Client

    @property
    def secrets(self) -> tuple[bytes, ...]:
        token = self.client.headers["authorization"].removeprefix("Bearer ")
        return (self.canary.encode(), token.encode(), *SIGNS)

    def execute(self, command: str) -> str:
        """Run a command as the user of the sandbox's program, and return what it prints."""
        while True:
            made = self.engine.api.exec_create(self.name, ["sh", "-c", f"{command}; echo ok"], user="anker")
            output = self.engine.api.exec_start(made["Id"]).decode()
            if output:
                return output.removesuffix("ok\n")
            # The engine sometimes loses the output of a command that ends at once: one in some thousands.

    def state(self) -> tuple[str, str]:
        """Return the canary with the names beside it, and when the sandbox's program started."""
        # Without other programs: the agent may use up the processes of the container.
        show = 'read -r line < canary; echo "$line" *; read -r line < /proc/1/stat; echo "$line"'
        found, stat = self.execute(f"cd /run/anker && {show}").splitlines()
        return found, stat.rpartition(")")[2].split()[19]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def box(engine: EngineSandbox, provider: DockerSandboxes) -> AsyncIterator[Box]:
    session = engine.new_session()
    sandbox = await provider.acquire(session)
    browser = sandbox.browser
    headers = {"Authorization": f"Bearer {browser.token}"}
    url = browser.url.removesuffix("/cdp") + "/api/v1"
    with httpx.Client(base_url=url, headers=headers, timeout=SECONDS, trust_env=False) as client:
        box = Box(sandbox, engine, engine.name(session), f"CANARY-{secrets.token_hex(8)}", client)
        box.execute(f"umask 077; echo {box.canary} > /run/anker/canary")
        await write(sandbox, "setup.py", setup_program(LINKS))
        await write(sandbox, "race.py", RACE)
        assert await run(sandbox, "python3 setup.py") == (0, "")
        await sandbox.shell_exec("race", "", "exec python3 race.py")
        yield box
    await provider.destroy(session)  # its program never rests


async def test_racing_link_never_leads_the_file_api_to_the_programs_own_files(box: Box) -> None:
    files = ("maps", "status", "environ", "canary")

    def read() -> dict[str, int]:
        found = {"mine": 0, "refused": 0}
        for turn in range(20_000 if LONG else 400):
            call = Call("/file/read", {"file": f"{('race', 'mine', 'other')[turn % 3]}/{files[turn // 3 % 4]}"})
            response = call.send(box.client)
            check(response, box.secrets)
            found["mine" if response.status_code == 200 else "refused"] += 1
        return found

    found = await asyncio.to_thread(read)
    assert min(found.values()) > 0, found


@examples(12, 6_700)
@given(data=st.data())
async def test_calls_with_any_paths_do_no_more_than_the_agents_user_may(box: Box, data: st.DataObject) -> None:
    before = box.state()
    sequence = data.draw(st.lists(calls(PLACES, tuple(LINKS)) | EXECUTIONS, min_size=8, max_size=20))

    def send() -> None:
        for call in sequence:
            check(call.send(box.client), box.secrets)

    await asyncio.to_thread(send)
    assert box.state() == before
    assert before[0].startswith(box.canary)
