"""What clients are shown of calls of shell and file tools: `content` of their `called` events."""

from typing import Any

import pytest

from app.domain.models.event import ToolCallingEvent
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint
from app.domain.models.sandbox import ConsoleRecord, ShellState
from app.domain.models.tool import OpenCall
from app.domain.repositories.event_log import Commit
from app.domain.services.tools import shell
from tests.fakes.memory_sandbox import HOME, KILLED, PROMPT, MemorySandbox, MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import calls, completes_step, creates_plan, says
from tests.support.agent_runs import ScriptedSession, make_worker

EXEC = {"id": "a", "exec_dir": "~", "command": "make"}


async def called(sandbox: MemorySandbox, *functions: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the `called` events of calls that the model makes, one a turn."""
    turns = [calls(function) for function in functions]
    session = ScriptedSession([creates_plan("one"), *turns, completes_step(), says("Done.")])
    session.sandboxes.prepared["s"] = sandbox
    await session.send()
    return [data for kind, data in await session.events() if kind == "tool" and data["status"] == "called"]


async def test_every_shell_tool_shows_records() -> None:
    sandbox = MemorySandbox()
    sandbox.script("make", "built\n", runs=True)
    events = await called(
        sandbox,
        ("shell_exec", EXEC),
        ("shell_write_to_process", {"id": "a", "input": "y", "press_enter": True}),
        ("shell_wait", {"id": "a", "seconds": 0}),
        ("shell_kill_process", {"id": "a"}),
        ("shell_view", {"id": "a"}),
    )
    outputs = ["", "y\n", "y\n", "y\n", "y\n"]
    assert [event["content"] for event in events] == [
        {"console": [{"ps1": PROMPT, "command": "make", "output": output}]} for output in outputs
    ]


async def test_failed_shell_tool_shows_reason_under_its_command() -> None:
    events = await called(MemorySandbox(), ("shell_exec", EXEC), ("shell_wait", {"id": "b"}))
    assert [event["content"] for event in events][1] == {"console": []}
    busy = MemorySandbox()
    busy.script("make", runs=True)
    events = await called(busy, ("shell_exec", EXEC), ("shell_exec", EXEC))
    assert events[1]["result"]["success"] is False
    assert events[1]["content"] == {
        "console": [{"ps1": "$", "command": "make", "output": "[shell a still runs `make`]\n"}]
    }


async def test_long_console_shows_newest_records() -> None:
    records = tuple(ConsoleRecord(ps1="$", command=str(n), output="x" * 20_000) for n in range(10))
    sandbox = MemorySandbox()

    async def view(shell_id: str) -> ShellState:
        return ShellState(shell_id=shell_id, status="completed", returncode=0, console=records)

    sandbox.shell_view = view  # type: ignore[method-assign]
    [event] = await called(sandbox, ("shell_view", {"id": "a"}))
    console = event["content"]["console"]
    assert [record["command"] for record in console] == ["7", "8", "9"]
    assert sum(len(record["output"]) for record in console) <= shell.MAX_CONSOLE


async def test_note_of_shell_reaches_model_and_clients() -> None:
    sandbox = MemorySandbox()

    async def execute(shell_id: str, exec_dir: str, command: str) -> ShellState:
        return ShellState(shell_id=shell_id, status="completed", returncode=3, note="the shell ended with status 3")

    sandbox.shell_exec = execute  # type: ignore[method-assign]
    session = ScriptedSession([creates_plan("one"), calls(("shell_exec", EXEC)), completes_step(), says("Done.")])
    session.sandboxes.prepared["s"] = sandbox
    await session.send()
    results = [getattr(message, "content", "") for message in await session.store.load_transcript("s", "executor")]
    assert "[exit code 3]\n[the shell ended with status 3]" in results
    [event] = [data for kind, data in await session.events() if kind == "tool" and data["status"] == "called"]
    assert event["result"]["message"] == "exit code 3; the shell ended with status 3"
    assert event["result"]["data"]["note"] == "the shell ended with status 3"


@pytest.mark.parametrize("stopped", [True, False])
async def test_interrupted_command_shows_its_output_so_far(stopped: bool) -> None:
    store, sandboxes = MemoryStore(), MemorySandboxProvider()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "do it", at=1, key=None)
    opened = OpenCall(id="c", toolkit="shell", function="shell_exec", args=EXEC)
    plan = Plan(goal="g", steps=(Step(id="1", description="one", status="running"),))
    checkpoint = Checkpoint(phase="executing", last_read_message=1, plan=plan, open_calls=(opened,))
    await store.commit("s", Commit(timestamp=1, events=[ToolCallingEvent.of(opened)], checkpoint=checkpoint))
    sandbox = await sandboxes.acquire("s")
    sandbox.script("make", "half", runs=True)
    await sandbox.shell_exec("a", "~", "make")
    sandbox.write_output("a", "half\n")
    worker = make_worker(store, sandboxes=sandboxes)
    if stopped:
        await worker.finish_stopped("s", up_to=1, fencing_token=None)
    else:
        await worker.kill_open_calls("s")
        await worker.finish_stopped("s", up_to=1, fencing_token=None)
    events = [record.data for record in await store.read("s", after=0, limit=100) if record.type == "tool"]
    assert b'"content":{"console":[{"ps1":"%b","command":"make","output":"half\\n"}]}' % PROMPT.encode() in events[-1]
    assert (await sandbox.shell_view("a")).returncode == KILLED


async def test_interrupted_call_without_sandbox_shows_its_command() -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "do it", at=1, key=None)
    opened = tuple(
        OpenCall(id=str(number), toolkit=toolkit, function=function, args=args)
        for number, (toolkit, function, args) in enumerate(
            [("shell", "shell_exec", EXEC), ("shell", "shell_wait", {"id": "a"}), ("file", "file_read", {"file": "x"})]
        )
    )
    plan = Plan(goal="g", steps=(Step(id="1", description="one", status="running"),))
    checkpoint = Checkpoint(phase="executing", last_read_message=1, plan=plan, open_calls=opened)
    await store.commit("s", Commit(timestamp=1, checkpoint=checkpoint))
    await make_worker(store).finish_stopped("s", up_to=1, fencing_token=None)
    events = [record.data for record in await store.read("s", after=0, limit=100) if record.type == "tool"]
    assert b'"content":{"console":[{"ps1":"$","command":"make","output":"[interrupted: ' in events[0]
    assert b'"content":{"console":[]}' in events[1]
    assert b'"content":{"content":"[interrupted: ' in events[2]


async def test_file_tools_show_file_after_call() -> None:
    sandbox = MemorySandbox()
    path = f"{HOME}/a.txt"
    events = await called(
        sandbox,
        ("file_write", {"file": "a.txt", "content": "one\ntwo\n"}),
        ("file_write", {"file": "a.txt", "content": "three\n", "append": True}),
        ("file_str_replace", {"file": "a.txt", "old_str": "two", "new_str": "2"}),
        ("file_find_in_content", {"file": "a.txt", "regex": "thr"}),
        ("file_read", {"file": "a.txt", "start_line": 1, "end_line": 2}),
        ("file_find_by_name", {"path": "~", "glob": "*.txt"}),
        ("file_read", {"file": "b.txt"}),
    )
    after = "one\n2\nthree\n"
    assert [event["content"] for event in events] == [
        {"content": "one\ntwo\n", "file": path},
        {"content": "one\ntwo\nthree\n", "file": path},
        *[{"content": after, "file": path}] * 3,
        {"content": path},
        {"content": "[no such file: b.txt]"},
    ]
    assert events[4]["result"]["data"]["content"] == "2\n"
