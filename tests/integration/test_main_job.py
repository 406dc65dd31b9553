"""The main job end to end: the real service as a process, real local sandboxes, a scripted model over real HTTP."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from tests.fakes.scripted_openai import Call, Raw, Reply, ScriptedOpenAI, Status, agent_script
from tests.support.invariants import check_log, check_requests
from tests.support.service import ApiClient, ServiceProcess

KEY = "sk-very-secret-key-0123456789"


def plan(*steps: str, message: str = "I will.") -> Reply:
    listed = [{"id": str(n), "description": text} for n, text in enumerate(steps, start=1)]
    return Reply(calls=[Call("create_plan", {"title": "T", "message": message, "goal": "G", "steps": listed})])


def shell(command: str, shell_id: str = "main") -> Call:
    return Call("shell_exec", {"id": shell_id, "exec_dir": "~", "command": command})


def complete(result: str = "ok", **more: Any) -> Call:
    return Call("complete_step", {"success": True, "result": result, **more})


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
async def service(model: ScriptedOpenAI, tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    service = ServiceProcess(
        tmp_path / "data",
        API_KEY=KEY,
        API_BASE=model.url,
        MODEL_NAME="scripted",
        SANDBOX_PROVIDER="local",
        LOG_LEVEL="DEBUG",
    )
    yield service
    await service.stop()
    log = service.log.read_text()
    assert KEY not in log
    assert "Traceback" not in log, log[-4000:]


@pytest.fixture
async def client(service: ServiceProcess) -> AsyncIterator[ApiClient]:
    client = await service.start()
    yield client
    await client.close()


def processes(text: str) -> list[psutil.Process]:
    """The processes whose command line holds `text`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(text in part for part in process.info["cmdline"] or ()) and "pytest" not in str(process.info["cmdline"]):
            found.append(process)
    return found


def unlike() -> str:
    """Seconds to sleep that no other process of this machine sleeps, and that stand in no other command line."""
    return f"3000.{uuid4().int % 10**12:012}"


async def gone(text: str, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while processes(text):
            await asyncio.sleep(0.02)


async def a_second(client: ApiClient, model: ScriptedOpenAI) -> float:
    """One; on a machine that is too busy for that, ten times what a question that needs no tools takes now."""
    model.reset(lambda asked: plan(message="Hello."))
    for _ in range(2):  # the first question loads what no later one has to
        began = time.monotonic()
        await client.send_and_read(await client.create_session(), "Hello")
    return max(1.0, 10 * (time.monotonic() - began))


async def test_a_task_of_several_steps_runs_to_its_end_in_the_order_of_the_contract(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    calls = [shell("echo one > a.txt; cat a.txt"), Call("file_read", {"file": "a.txt"})]
    model.reset(agent_script(steps=2, calls=calls, text="It is **done**."))
    session = await client.create_session()
    seen = await client.send_and_read(session, "Do it", timestamp=1_700_000_000)
    assert [item.event for item in seen] == [
        *("title", "message", "plan", "step"),
        *("tool", "tool", "tool", "tool", "step", "plan", "step"),
        *("tool", "tool", "tool", "tool", "step", "plan"),
        *("message", "done"),
    ]
    assert seen[5].data["result"]["data"]["output"].strip() == "one"
    assert seen[7].data["result"]["data"]["content"] == "one\n"
    history = await client.get_session(session)
    check_log(history["events"])
    check_requests(model.asked)
    assert history["status"] == "completed"
    assert history["events"][0]["data"] == {
        "event_id": history["events"][0]["data"]["event_id"],
        "timestamp": 1_700_000_000,
        "role": "user",
        "content": "Do it",
    }
    assert [{"event": item.event, "data": item.data} for item in seen] == history["events"][1:]
    attached = await (await client.open_chat(session, {})).read_all()
    assert [item.data for item in attached] == [item["data"] for item in history["events"]]
    shown = (await client.http.post(f"/api/v1/sessions/{session}/shell", json={"session_id": "main"})).json()
    assert shown["code"] == 0
    assert [set(record) for record in shown["data"]["console"]] == [{"ps1", "command", "output"}] * 2
    file = (await client.http.post(f"/api/v1/sessions/{session}/file", json={"file": "/home/ubuntu/a.txt"})).json()
    assert file["data"]["content"] == "one\n"


async def test_a_question_that_needs_no_tools_gets_its_answer_and_no_sandbox(
    client: ApiClient, model: ScriptedOpenAI, service: ServiceProcess
) -> None:
    model.reset([plan(message="Paris.")])
    session = await client.create_session()
    seen = await client.send_and_read(session, "What is the capital of France?")
    assert [(item.event, item.data.get("content")) for item in seen] == [
        ("title", None),
        ("message", "Paris."),
        ("done", None),
    ]
    assert not list((service.data_dir / "sandboxes").glob(f"{session}*"))
    assert len(model.asked) == 1


@pytest.mark.parametrize("how", ["interrupt", "stop"])
async def test_a_command_under_way_ends_within_a_second_with_its_whole_process_group(
    client: ApiClient, model: ScriptedOpenAI, how: str
) -> None:
    second, mark = await a_second(client, model), unlike()
    script = [plan("wait"), Reply(calls=[shell(f"(sleep {mark} & sleep {mark}); echo never")]), plan(message="Hello.")]
    model.reset(script)
    session = await client.create_session()
    chat = await client.send_message(session, "Wait long")
    await chat.wait_for("tool", status="calling")
    async with asyncio.timeout(30):
        while len(processes(mark)) < 2:
            await asyncio.sleep(0.02)
    began = time.monotonic()
    if how == "stop":
        assert (await client.stop_run(session)).json()["code"] == 0
        further = None
    else:
        further = await client.send_message(session, "Never mind, hello")
    seen = await chat.read_all()
    assert time.monotonic() - began < second
    await gone(mark, second)
    closed = next(item for item in seen if item.event == "tool" and item.data["status"] == "called")
    assert closed.data["result"]["success"] is False
    assert closed.data["result"]["message"]
    assert [item.data["status"] for item in seen if item.event == "step"] == ["running", "failed"]
    assert [item.event for item in seen].count("done") == 1
    history = await client.get_session(session)
    check_log(history["events"])
    check_requests(model.asked)
    assert history["status"] == "completed"
    if further is not None:
        told = [message["content"] for message in model.asked[-1].messages]
        assert mark in told[-2], "the planner is told what was under way"
        assert "Never mind, hello" in told[-1]
        own = [item.data for item in await further.read_all()]
        assert own == [item["data"] for item in history["events"] if item["data"] in own]
    assert (await client.stop_run(session)).json()["code"] == 0
    assert (await client.get_session(session))["events"] == history["events"]


async def test_stop_closes_the_connection_to_a_model_that_is_thinking(client: ApiClient, model: ScriptedOpenAI) -> None:
    second = await a_second(client, model)
    model.reset([Reply(text="Once upon", size=2, hang_after=2)])
    session = await client.create_session()
    chat = await client.send_message(session, "Think")
    await asyncio.to_thread(model.wait_for, 1)
    began = time.monotonic()
    await client.stop_run(session)
    seen = await chat.read_all()
    assert time.monotonic() - began < second
    assert [item.event for item in seen] == ["done"]
    assert await asyncio.to_thread(model.asked[0].disconnected.wait, second)


async def test_a_question_rests_the_run_and_the_answer_resumes_it(client: ApiClient, model: ScriptedOpenAI) -> None:
    ask = Reply(calls=[shell("echo before"), Call("message_ask_user", {"text": "Which colour?"})])
    model.reset([plan("paint"), ask, Reply(calls=[complete("painted it blue")]), Reply(text="Blue it is.")])
    session = await client.create_session()
    first = await client.send_and_read(session, "Paint")
    assert [item.event for item in first][-2:] == ["message", "wait"]
    assert first[-2].data["content"] == "Which colour?"
    assert not any(item.data.get("function") == "message_ask_user" for item in first)
    assert (await client.get_session(session))["status"] == "waiting"
    second = await client.send_and_read(session, "Blue")
    assert [item.event for item in second] == ["step", "plan", "message", "done"]
    answer = model.asked[2].messages[-1]
    assert answer["role"] == "tool"
    assert "Blue" in answer["content"]
    check_log((await client.get_session(session))["events"])
    check_requests(model.asked)


async def test_stop_while_it_waits_for_the_user_ends_the_run(client: ApiClient, model: ScriptedOpenAI) -> None:
    model.reset([plan("a"), Reply(calls=[Call("message_ask_user", {"text": "?"})]), plan(message="New.")])
    session = await client.create_session()
    await client.send_and_read(session, "Go")
    await client.stop_run(session)
    history = await client.get_session(session)
    assert history["status"] == "completed"
    assert history["events"][-1]["event"] == "done"
    await client.send_and_read(session, "Something else")
    check_log((await client.get_session(session))["events"])
    check_requests(model.asked)


BAD = {
    "broken JSON": Reply(calls=[Call("shell_exec", '{"id": "main", ')]),
    "missing argument": Reply(calls=[Call("shell_exec", {"id": "main"})]),
    "extra argument": Reply(calls=[Call("file_read", {"file": "a", "colour": "red"})]),
    "unknown tool": Reply(calls=[Call("make_coffee", {})]),
    "prose": Reply(text="I would now run the command."),
    "empty": Reply(text=""),
    "no name": Reply(calls=[Call("", {})]),
    "planning call": Reply(calls=[Call("create_plan", {"message": "x"})]),
    "cut off": Reply(calls=[Call("file_write", '{"file": "a", "content": "xxx')], finish="length"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_what_comes_back_malformed_is_told_to_the_model_and_the_task_goes_on(
    client: ApiClient, model: ScriptedOpenAI, kind: str
) -> None:
    model.reset([plan("a"), BAD[kind], BAD[kind], Reply(calls=[complete()]), Reply(text="Done.")])
    session = await client.create_session()
    seen = await client.send_and_read(session, "Go")
    assert [item.event for item in seen][-2:] == ["message", "done"]
    assert not any(item.event == "tool" for item in seen)
    check_requests(model.asked)
    told = model.asked[2].messages[-1]
    assert told["role"] in ("tool", "user")
    assert told["content"]


@pytest.mark.parametrize("kind", BAD)
async def test_a_model_that_never_answers_usably_ends_in_an_error_and_not_in_a_loop(
    client: ApiClient, model: ScriptedOpenAI, kind: str
) -> None:
    model.reset(lambda asked: plan("a") if asked.kind == "planning" else BAD[kind])
    session = await client.create_session()
    seen = await client.send_and_read(session, "Go")
    assert seen[-1].event == "error"
    assert "could not be used" in seen[-1].data["error"]
    assert len(model.asked) <= 6
    history = await client.get_session(session)
    assert history["status"] == "completed"
    check_log(history["events"])
    model.reset([plan(message="Fine again.")])
    assert (await client.send_and_read(session, "And now?"))[-1].event == "done"


@pytest.mark.parametrize("planning", [Reply(text="no plan"), Reply(text=""), Reply(calls=[Call("create_plan", "{")])])
async def test_a_planning_answer_that_is_no_plan_is_corrected(
    client: ApiClient, model: ScriptedOpenAI, planning: Reply
) -> None:
    model.reset([planning, plan(message="Here.")])
    session = await client.create_session()
    seen = await client.send_and_read(session, "Go")
    assert [item.event for item in seen] == ["title", "message", "done"]
    assert seen[1].data["content"] == "Here."
    check_requests(model.asked)


async def test_plain_json_content_is_understood_as_the_call(client: ApiClient, model: ScriptedOpenAI) -> None:
    steps = [{"id": "1", "description": "a"}]
    model.reset(
        [
            Reply(text=json.dumps({"title": "T", "message": "M", "goal": "G", "steps": steps})),
            Reply(text='```json\n{"success": true, "result": "r"}\n```'),
            Reply(text="Done."),
        ]
    )
    seen = await client.send_and_read(await client.create_session(), "Go")
    assert [item.event for item in seen] == ["title", "message", "plan", "step", "step", "plan", "message", "done"]


async def test_calls_of_one_turn_all_run_and_are_all_answered_even_with_the_same_id(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    calls = [
        Call("file_write", {"file": "a.txt", "content": "A"}, id="same"),
        Call("file_read", {"file": "a.txt"}, id="same"),
        Call("file_find_by_name", {"path": "~", "glob": "*.txt"}, id=""),
        Call("nonsense", {}, id="x"),
        Call("complete_step", {"success": True, "result": "ok"}, id="same"),
    ]
    model.reset([plan("a"), Reply(calls=calls), Reply(text="Done.")])
    session = await client.create_session()
    seen = await client.send_and_read(session, "Go")
    tools = [(item.data["function"], item.data["status"]) for item in seen if item.event == "tool"]
    assert sorted(tools) == sorted(
        (name, status) for name in ("file_write", "file_read", "file_find_by_name") for status in ("calling", "called")
    )
    assert seen[-1].event == "done"
    check_log((await client.get_session(session))["events"])


async def test_a_step_may_change_the_rest_of_the_plan(client: ApiClient, model: ScriptedOpenAI) -> None:
    changes = {"steps": [{"id": "9", "description": "instead"}]}
    model.reset(
        [
            plan("a", "b", "c"),
            Reply(calls=[complete("first", plan_changes=changes)]),
            Reply(calls=[complete("second")]),
            Reply(text="Done."),
        ]
    )
    seen = await client.send_and_read(await client.create_session(), "Go")
    plans = [[step["description"] for step in item.data["steps"]] for item in seen if item.event == "plan"]
    assert plans == [["a", "b", "c"], ["a", "instead"], ["a", "instead"]]
    assert len(model.asked) == 4


async def test_deltas_come_before_the_whole_message_and_only_when_asked_for(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    script = [plan("a"), Reply(calls=[complete()]), Reply(text="A rather long answer.", size=4, delay=0.01)]
    for stream in (True, False):
        model.reset(script)
        session = await client.create_session()
        seen = await client.send_and_read(session, "Go", stream=stream)
        deltas = [item for item in seen if item.event == "message_delta"]
        assert bool(deltas) is stream
        assert all(item.id is None for item in deltas)
        if stream:
            final = [item.data["message_id"] for item in deltas][-1]
            written = "".join(item.data["delta"] for item in deltas if item.data["message_id"] == final)
            assert written == "A rather long answer."
            assert [item.event for item in seen][-2:] == ["message", "done"]
        stored = (await client.get_session(session))["events"]
        assert not any(item["event"] == "message_delta" for item in stored)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Status(status=401, body={"error": {"message": f"bad key {KEY}"}}), "API_KEY"),
        (Status(status=404, body={"error": {"message": "no such model"}}), "MODEL_NAME"),
        (Status(status=400, body={"error": {"message": "too long", "code": "context_length_exceeded"}}), "context"),
    ],
)
async def test_a_model_that_refuses_ends_the_run_with_words_that_help(
    client: ApiClient, model: ScriptedOpenAI, trouble: Status, said: str
) -> None:
    model.reset([trouble])
    session = await client.create_session()
    seen = await client.send_and_read(session, "Go")
    assert [item.event for item in seen] == ["error"]
    assert said in seen[0].data["error"]
    assert KEY not in json.dumps((await client.get_session(session))["events"])


async def test_a_stream_of_the_model_that_breaks_off_is_asked_for_again(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    model.reset([plan("a"), Raw(pieces=[b"data: {"], cut=True), Reply(calls=[complete()]), Reply(text="Done.")])
    seen = await client.send_and_read(await client.create_session(), "Go")
    assert seen[-1].event == "done"
    assert len(model.asked) == 4


async def test_delete_ends_the_run_the_sandbox_and_every_trace(
    client: ApiClient, model: ScriptedOpenAI, service: ServiceProcess
) -> None:
    mark = unlike()
    model.reset([plan("a"), Reply(calls=[shell(f"sleep {mark}")])])
    session = await client.create_session()
    chat = await client.send_message(session, "Go")
    await chat.wait_for("tool", status="calling")
    async with asyncio.timeout(30):
        while not processes(mark):
            await asyncio.sleep(0.02)
    path = f"/api/v1/sessions/{session}"
    assert (await client.http.delete(path)).json() == {"code": 0, "msg": "success", "data": None}
    await chat.read_all()
    await gone(mark)
    for response in (await client.http.get(path), await client.http.delete(path), await client.stop_run(session)):
        assert response.status_code == 404
        assert response.json()["code"] == 404
    assert len(model.asked) == 2
    assert not list((service.data_dir / "sandboxes").glob(f"{session}*"))


async def test_messages_at_the_same_instant_are_all_read_by_one_run_at_a_time(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    model.reset(lambda asked: plan(message="Heard."))
    session = await client.create_session()
    chats = await asyncio.gather(*(client.send_message(session, f"word-{n}") for n in range(20)))
    for chat in chats:
        await chat.read_all()
    history = await client.get_session(session)
    check_log(history["events"])
    users = [item["data"]["content"] for item in history["events"] if item["data"].get("role") == "user"]
    assert sorted(users) == sorted(f"word-{n}" for n in range(20))
    told = json.dumps(model.asked[-1].messages)
    assert all(f"word-{n}\\n" in told or f"word-{n}\\\\n" in told for n in range(20))


async def test_the_same_idempotency_key_is_one_message(client: ApiClient, model: ScriptedOpenAI) -> None:
    model.reset(lambda asked: plan(message="Once."))
    session = await client.create_session()
    headers = {"Idempotency-Key": "k1"}
    chats = await asyncio.gather(*(client.open_chat(session, {"message": "Go"}, headers) for _ in range(30)))
    ends = [[item.raw for item in await chat.read_all()] for chat in chats]
    assert all(end == ends[0] for end in ends)
    history = await client.get_session(session)
    assert [item["event"] for item in history["events"]] == ["message", "title", "message", "done"]
    assert len(model.asked) == 1


async def test_after_a_kill_the_run_goes_on_and_nothing_is_run_twice(
    service: ServiceProcess, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    mark = unlike()
    model.reset(
        [
            plan("a"),
            Reply(calls=[shell(f"echo one >> {marks}")]),
            Reply(calls=[shell(f"echo two >> {marks}; sleep {mark}")]),
            Reply(calls=[complete()]),
            Reply(text="Done after all."),
        ]
    )
    client = await service.start()
    session = await client.create_session()
    chat = await client.send_message(session, "Go")
    async with asyncio.timeout(30):
        while not processes(mark):
            await asyncio.sleep(0.02)
    await service.kill()
    await chat.read_all()
    await client.close()
    await gone(mark)
    last = max(int(item.id or 0) for item in chat.frames)
    client = await service.start()
    rest = await (await client.open_chat(session, {"event_id": f"{last:012d}"})).read_all()
    assert rest[-1].event == "done"
    history = await client.get_session(session)
    assert [item.data for item in chat.frames + rest] == [item["data"] for item in history["events"][1:]]
    check_log(history["events"])
    check_requests(model.asked)
    assert marks.read_text() == "one\ntwo\n"
    interrupted = [m["content"] for m in model.asked[3].messages if m["role"] == "tool"][-1]
    assert "unknown" in interrupted
    await client.close()


async def test_the_model_cannot_read_the_services_secrets_from_its_shell(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    looks = "env; cat /proc/$PPID/environ | tr '\\0' '\\n'; cat /proc/self/environ"
    model.reset(agent_script(steps=1, calls=[shell(looks)]))
    session = await client.create_session()
    seen = await client.send_and_read(session, "Look around")
    assert KEY not in json.dumps([item.data for item in seen])


async def test_sigterm_ends_open_streams_and_the_process_in_time(
    client: ApiClient, model: ScriptedOpenAI, service: ServiceProcess
) -> None:
    second = await a_second(client, model)
    model.reset([Reply(text="x", hang_after=0)])
    session = await client.create_session()
    chats = [await client.send_message(session, "Go"), *[await client.open_chat(session, {}) for _ in range(50)]]
    began = time.monotonic()
    assert await service.stop() in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 5 * second
    for chat in chats:
        await chat.read_all()


async def test_a_real_model_gets_no_unisolated_shell_unless_the_operator_says_so(
    model: ScriptedOpenAI, tmp_path: Path
) -> None:
    model.reset(agent_script(steps=1, calls=[shell("id")]))
    nowhere = f"unix://{tmp_path}/docker.sock"
    service = ServiceProcess(
        tmp_path / "data", API_KEY=KEY, API_BASE=model.url, SANDBOX_PROVIDER="auto", DOCKER_HOST=nowhere
    )
    client = await service.start()
    seen = await client.send_and_read(await client.create_session(), "Go")
    called = next(item for item in seen if item.event == "tool" and item.data["status"] == "called")
    assert called.data["result"]["success"] is False
    assert "SANDBOX_PROVIDER=local" in called.data["result"]["message"]
    assert seen[-1].event == "done"
    await client.close()
    await service.stop()
