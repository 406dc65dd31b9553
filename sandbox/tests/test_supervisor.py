"""Supervision of real processes with real signals."""

import asyncio
import itertools
import os
import re
import time

import pytest

from sandbox.identity import Identity
from sandbox.parts import supervisor as supervisor_module
from sandbox.parts.child import Command
from sandbox.parts.supervisor import Supervisor
from sandbox.tests.real import below
from tests.support.eventually import eventually

PID_LINE = re.compile(rb"^pid (\d+)\n", re.MULTILINE)


@pytest.fixture
async def supervise(tmp_path):
    supervisors = []

    def make(script: str, **options) -> Supervisor:
        starts = tmp_path / "starts"
        starts.touch()

        async def launch() -> Command:
            with starts.open("a") as log:
                log.write(f"{time.monotonic()}\n")
            return Command(("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]}, str(tmp_path), Identity.of_user(""))

        supervisor = Supervisor("test", launch, **options)
        supervisor.starts = lambda: [float(line) for line in starts.read_text().split()]
        supervisors.append(supervisor)
        return supervisor

    yield make
    for supervisor in supervisors:
        await supervisor.stop()


async def test_program_is_ready_once_pattern_appears(supervise):
    supervisor = supervise("echo starting; echo pid $$; sleep 30", ready=PID_LINE)
    assert supervisor.ready_text is None and not supervisor.started
    supervisor.start()
    ready_text = await supervisor.wait_ready(30)
    assert {int(ready_text)} == supervisor.pids


async def test_ready_text_in_pieces_is_recognized(supervise):
    supervisor = supervise("printf 'noise\\npi'; sleep 0.1; printf 'd 12'; sleep 0.1; echo 3; sleep 30", ready=PID_LINE)
    supervisor.start()
    assert await supervisor.wait_ready(30) == "123"


async def test_wait_ready_times_out_without_ready_text(supervise):
    supervisor = supervise("sleep 30", ready=PID_LINE)
    supervisor.start()
    with pytest.raises(TimeoutError):
        await supervisor.wait_ready(0.2)


async def test_program_that_ends_is_restarted(supervise):
    supervisor = supervise("echo pid $$; sleep 30", ready=PID_LINE)
    supervisor.start()
    first = await supervisor.wait_ready(30)
    os.kill(int(first), 9)
    await eventually(lambda: supervisor.ready_text not in (None, first))
    assert {int(supervisor.ready_text)} == supervisor.pids


async def test_restart_pause_grows_with_repeated_failures(supervise):
    supervisor = supervise("echo no luck >&2; exit 3")
    supervisor.start()
    await eventually(lambda: len(supervisor.starts()) >= 4)
    starts = supervisor.starts()
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[0] >= 0.1 and pauses[1] >= 0.2 and pauses[2] >= 0.4
    assert supervisor.last_failure == "no luck"


async def test_missing_program_is_retried_and_reason_is_kept(supervise, tmp_path):
    async def launch() -> Command:
        return Command(("/nowhere/program",), {}, str(tmp_path), Identity.of_user(""))

    supervisor = Supervisor("none", launch)
    supervisor.start()
    await eventually(lambda: supervisor.last_failure)
    assert supervisor.started and not supervisor.pids
    await supervisor.stop()


async def test_restart_ends_process_group_and_starts_at_once(supervise):
    supervisor = supervise("(trap '' TERM; sleep 30) & sleep 31 & echo pid $$; wait", ready=PID_LINE, grace=0.3)
    supervisor.start()
    first = int(await supervisor.wait_ready(30))
    await eventually(lambda: len(below(first)) >= 2)
    family = below(first)
    began = time.monotonic()
    await supervisor.restart()
    assert int(await supervisor.wait_ready(30)) != first
    assert time.monotonic() - began < 15  # half of the time that the group would have run
    await eventually(lambda: not any(process.is_running() and process.status() != "zombie" for process in family))


async def test_restart_during_pause_starts_at_once(supervise, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 300)
    supervisor = supervise('[ -e go ] || exit 1; echo "pid $$"; sleep 30', ready=PID_LINE)
    supervisor.start()
    await eventually(lambda: supervisor.starts() and not supervisor.pids)
    (tmp_path / "go").touch()
    await supervisor.restart()
    await supervisor.wait_ready(30)


async def test_stop_escalates_from_close_to_sigkill(supervise, tmp_path):
    soft = supervise("trap 'echo x >went; exit 0' TERM; echo pid $$; while :; do sleep 0.05; done", ready=PID_LINE)
    hard = supervise("trap '' TERM; echo pid $$; while :; do sleep 0.05; done", ready=PID_LINE, grace=0.2)
    for supervisor in (soft, hard):
        supervisor.start()
        await supervisor.wait_ready(30)
    pids = soft.pids | hard.pids
    began = time.monotonic()
    await asyncio.gather(soft.stop(), hard.stop())
    assert time.monotonic() - began < 15  # both would run forever
    assert (tmp_path / "went").exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_stopped_program_is_not_restarted(supervise):
    supervisor = supervise("echo pid $$; sleep 30", ready=PID_LINE)
    supervisor.start()
    await supervisor.wait_ready(30)
    await supervisor.stop()
    count = len(supervisor.starts())
    await asyncio.sleep(0.3)
    assert len(supervisor.starts()) == count and supervisor.ready_text is None and not supervisor.pids


async def test_heavy_output_is_read_and_only_tail_kept(supervise):
    supervisor = supervise("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
    supervisor.start()
    await eventually(lambda: supervisor.last_failure.endswith("the end"))
    assert len(supervisor.last_failure) <= 4096
