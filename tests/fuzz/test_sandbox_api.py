"""The file and shell API of a sandbox that is a process, as the local provider starts it: restricted to its folders."""

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.tests.real import Service
from tests.fuzz.sandbox_calls import EXECUTIONS, SECONDS, Call, calls, check, setup_program
from tests.support.fuzzing import examples

SECRET = b"CANARY-5d1f0c"
LINKS = ("l-canary", "l-canaries")


class Canaries:
    """Files outside of the sandbox's folders, and the sandbox."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "outside"
        self.folder.mkdir()
        (self.folder / "canary.txt").write_bytes(SECRET)
        (self.folder / SECRET.decode()).write_bytes(b"")
        self.before = self.state()
        self.home = folder / "home"
        self.home.mkdir()
        self.service = Service(folder, SANDBOX_ROOTS=str(self.home), SANDBOX_BROWSER="off", SANDBOX_EXEC_SECONDS="2")
        self.client = httpx.Client(
            base_url=f"http://{self.service.address}/api/v1", headers=self.service.headers, timeout=SECONDS
        )

    def state(self) -> list[tuple[str, bytes, float]]:
        return [(path.name, path.read_bytes(), path.stat().st_mtime) for path in sorted(self.folder.iterdir())]

    def fill(self, tmp_path: Path) -> None:
        program = tmp_path / "setup.py"
        links = {"l-canary": str(self.folder / "canary.txt"), "l-canaries": str(self.folder)}
        program.write_text(setup_program(links))
        os.chdir(self.home)
        runpy.run_path(str(program))


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    folder, before = tmp_path_factory.mktemp("sandbox"), Path.cwd()
    canaries = Canaries(folder)
    try:
        canaries.fill(folder)
    finally:
        os.chdir(before)
    yield canaries
    canaries.client.close()
    canaries.service.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the links lead to files of Linux")
@examples(30, 4_000)
@given(data=st.data())
def test_calls_with_any_paths_stay_within_the_folders_of_the_sandbox(canaries: Canaries, data: st.DataObject) -> None:
    places = (
        str(canaries.folder),
        str(canaries.folder / "canary.txt"),
        f"{canaries.home}/../outside",
        "/etc/passwd",
        "/proc",
    )
    sequence: list[Call] = data.draw(st.lists(calls(places, LINKS) | EXECUTIONS, min_size=8, max_size=20))
    for call in sequence:
        check(call.send(canaries.client), (SECRET, b"root:x:0"))
    assert canaries.state() == canaries.before
    assert canaries.service.process.poll() is None
