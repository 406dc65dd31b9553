"""Programs that are kept running: real processes, real signals."""

import asyncio
import itertools
import os
import re
import time

import pytest

from sandbox.parts import keeper as keeper_module
from sandbox.parts.child import Command
from sandbox.parts.keeper import Keeper
from sandbox.tests.real import below

SAYS_ITS_PID = re.compile(rb"^pid (\d+)\n", re.MULTILINE)


@pytest.fixture
async def keep(tmp_path):
    keepers = []

    def make(script: str, **options) -> Keeper:
        starts = tmp_path / "starts"
        starts.touch()

        async def launch() -> Command:
            with starts.open("a") as log:
                log.write(f"{time.monotonic()}\n")
            return Command(("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]}, str(tmp_path))

        keeper = Keeper("test", launch, **options)
        keeper.starts = lambda: [float(line) for line in starts.read_text().split()]
        keepers.append(keeper)
        return keeper

    yield make
    for keeper in keepers:
        await keeper.end()


async def reached(condition, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_is_ready_when_it_has_said_so_and_what_it_said_is_known(keep):
    keeper = keep("echo starting; echo pid $$; sleep 30", ready=SAYS_ITS_PID)
    assert keeper.said is None and not keeper.begun
    keeper.begin()
    said = await keeper.ready(30)
    assert {int(said)} == keeper.pids


async def test_a_word_that_comes_in_pieces_is_recognised(keep):
    keeper = keep("printf 'noise\\npi'; sleep 0.1; printf 'd 12'; sleep 0.1; echo 3; sleep 30", ready=SAYS_ITS_PID)
    keeper.begin()
    assert await keeper.ready(30) == "123"


async def test_one_that_never_says_so_is_waited_for_no_longer_than_wanted(keep):
    keeper = keep("sleep 30", ready=SAYS_ITS_PID)
    keeper.begin()
    with pytest.raises(TimeoutError):
        await keeper.ready(0.2)


async def test_one_that_dies_is_started_again(keep):
    keeper = keep("echo pid $$; sleep 30", ready=SAYS_ITS_PID)
    keeper.begin()
    first = await keeper.ready(30)
    os.kill(int(first), 9)
    await reached(lambda: keeper.said not in (None, first))
    assert {int(keeper.said)} == keeper.pids


async def test_the_pause_grows_while_it_keeps_failing(keep):
    keeper = keep("echo no luck >&2; exit 3")
    keeper.begin()
    await reached(lambda: len(keeper.starts()) >= 4)
    starts = keeper.starts()
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[0] >= 0.1 and pauses[1] >= 0.2 and pauses[2] >= 0.4
    assert keeper.failure == "no luck"


async def test_a_program_that_is_not_there_is_tried_again_and_the_reason_is_kept(keep, tmp_path):
    async def launch() -> Command:
        return Command(("/nowhere/program",), {}, str(tmp_path))

    keeper = Keeper("none", launch)
    keeper.begin()
    await reached(lambda: keeper.failure)
    assert keeper.begun and not keeper.pids
    await keeper.end()


async def test_a_restart_ends_the_whole_group_and_begins_at_once(keep):
    keeper = keep("(trap '' TERM; sleep 30) & sleep 31 & echo pid $$; wait", ready=SAYS_ITS_PID, grace=0.3)
    keeper.begin()
    first = int(await keeper.ready(30))
    await reached(lambda: len(below(first)) >= 2)
    family = below(first)
    began = time.monotonic()
    await keeper.restart()
    assert int(await keeper.ready(30)) != first
    assert time.monotonic() - began < 15  # half of what the group would have gone on for
    await reached(lambda: not any(process.is_running() and process.status() != "zombie" for process in family))


async def test_a_restart_during_a_long_pause_does_not_wait_for_its_end(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper_module, "_FIRST_PAUSE", 300)
    keeper = keep('[ -e go ] || exit 1; echo "pid $$"; sleep 30', ready=SAYS_ITS_PID)
    keeper.begin()
    await reached(lambda: keeper.starts() and not keeper.pids)
    (tmp_path / "go").touch()
    await keeper.restart()
    await keeper.ready(30)


async def test_the_end_is_soft_first_and_hard_for_one_that_does_not_go(keep, tmp_path):
    soft = keep("trap 'echo x >went; exit 0' TERM; echo pid $$; while :; do sleep 0.05; done", ready=SAYS_ITS_PID)
    hard = keep("trap '' TERM; echo pid $$; while :; do sleep 0.05; done", ready=SAYS_ITS_PID, grace=0.2)
    for keeper in (soft, hard):
        keeper.begin()
        await keeper.ready(30)
    pids = soft.pids | hard.pids
    began = time.monotonic()
    await asyncio.gather(soft.end(), hard.end())
    assert time.monotonic() - began < 15  # both would go on for ever
    assert (tmp_path / "went").exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_after_the_end_it_is_not_started_again(keep):
    keeper = keep("echo pid $$; sleep 30", ready=SAYS_ITS_PID)
    keeper.begin()
    await keeper.ready(30)
    await keeper.end()
    count = len(keeper.starts())
    await asyncio.sleep(0.3)
    assert len(keeper.starts()) == count and keeper.said is None and not keeper.pids


async def test_a_flood_of_output_is_read_and_only_its_end_kept(keep):
    keeper = keep("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
    keeper.begin()
    await reached(lambda: keeper.failure.endswith("the end"))
    assert len(keeper.failure) <= 4096
