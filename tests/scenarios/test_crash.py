"""A service that is killed in the middle of a compaction, and started again."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply, ScriptedOpenAI
from tests.scenarios.harness import REPLY_TOKENS, WINDOW
from tests.support.invariants import check_log
from tests.support.metering import MeteredModel
from tests.support.service import ServiceProcess
from tests.support.task_models import MESSAGE, WORD, Task, TaskModel, is_compaction

STEPS, TURNS = 2, 20
"""Size of the task: the window holds about three quarters of the turns."""


def _print_numbers(number: int) -> Call:
    command = f"seq {number * 1_000} {number * 1_000 + 500}"
    return Call("shell_exec", {"id": "main", "exec_dir": "~", "command": command})


class BlockingModel:
    """A script that does not answer one request, and sets `blocked` instead: the first summary, or what follows it."""

    def __init__(self, inner: TaskModel, *, after_summary: bool) -> None:
        self.blocked = threading.Event()
        self._inner = inner
        self._after_summary = after_summary
        self._summary_seen = False

    def __call__(self, asked: Asked) -> Answer:
        summary = is_compaction(asked)
        if not self.blocked.is_set() and (self._summary_seen if self._after_summary else summary):
            self.blocked.set()
            return Reply(text="The", hang_after=0)
        self._summary_seen = self._summary_seen or summary
        return self._inner(asked)


@pytest.mark.parametrize("after_summary", [False, True], ids=["during the summary", "after the summary"])
async def test_run_killed_in_a_compaction_continues(after_summary: bool, tmp_path: Path) -> None:
    inner = TaskModel(Task(steps=STEPS, turns=TURNS, call=_print_numbers))
    script = BlockingModel(inner, after_summary=after_summary)
    model = MeteredModel(script, window=WINDOW)
    with ScriptedOpenAI(model, record=False) as server:
        service = ServiceProcess(
            tmp_path / "data",
            API_KEY="sk-scenario",
            API_BASE=server.url,
            MODEL_NAME="scripted",
            MODEL_CONTEXT_TOKENS=str(WINDOW),
            MAX_TOKENS=str(REPLY_TOKENS),
        )
        client = await service.start()
        session_id = await client.create_session()
        stream = await client.send_message(session_id, MESSAGE)
        assert await asyncio.to_thread(script.blocked.wait, 60), stream.event_types
        before = model.figures.calls
        await service.kill()
        await client.close()
        client = await service.start()
        frames = await (await client.open_chat(session_id, {})).read_all(seconds=60)
        events = (await client.get_session(session_id))["events"]
        await client.close()
        await service.stop()
    assert [frame.event for frame in frames][-2:] == ["message", "done"], frames[-1]
    assert frames[-2].data["content"].endswith(WORD)
    check_log(events)
    assert not model.figures.overflows and not model.figures.refusals
    assert model.figures.calls - before <= STEPS * (TURNS + 1) + 10, "the compaction was repeated again and again"
