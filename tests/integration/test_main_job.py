"""Runs end to end: the real service as a process, real local sandboxes, and a scripted model over real HTTP."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import pytest_asyncio

from tests.fakes.scripted_openai import Answer, Asked, Call, Raw, Reply, ScriptedOpenAI, Status, agent_script
from tests.support.eventually import WAIT_SECONDS, eventually
from tests.support.invariants import check_log, check_requests
from tests.support.service import ApiClient, ServiceProcess

KEY = "sk-very-secret-key-0123456789"

pytestmark = pytest.mark.asyncio(loop_scope="module")


def plan(*steps: str, message: str = "I will.") -> Reply:
    """Return a reply that plans a step for each description."""
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


@asynccontextmanager
async def prepared_service(model: ScriptedOpenAI, folder: Path) -> AsyncIterator[ServiceProcess]:
    """Yield a service that is not started yet. At the end, stop it and check its log."""
    service = ServiceProcess(
        folder / "data",
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(model: ScriptedOpenAI, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceProcess]:
    """The service that all tests share which do not end it."""
    async with prepared_service(model, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: ServiceProcess) -> AsyncIterator[ApiClient]:
    client = await service.start()
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def own_service(model: ScriptedOpenAI, tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    """A service, not started yet, that the test may end."""
    async with prepared_service(model, tmp_path) as service:
        yield service


def find_processes(text: str) -> list[psutil.Process]:
    """Return the processes with `text` in their command line, except pytest."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or ()
        if any(text in argument for argument in arguments) and "pytest" not in str(arguments):
            found.append(process)
    return found


def unique_duration() -> str:
    """Return a number of seconds for `sleep` that is in no other command line of this machine."""
    return f"3000.{uuid4().int % 10**12:012}"


async def wait_until_gone(text: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until no process has `text` in its command line."""
    await eventually(lambda: not find_processes(text), seconds=seconds, interval=0.02)


async def one_second(client: ApiClient, model: ScriptedOpenAI) -> float:
    """Return one second, or ten times the duration of a run without tools if this machine is too busy for that."""
    model.reset(lambda asked: plan(message="Hello."))
    for _ in range(2):  # The first run is slower because it loads modules.
        started_at = time.monotonic()
        await client.send_and_read(await client.create_session(), "Hello")
    return max(1.0, 10 * (time.monotonic() - started_at))


async def test_task_of_several_steps_streams_its_events_in_the_order_of_the_contract(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    calls = [shell("echo one > a.txt; cat a.txt"), Call("file_read", {"file": "a.txt"})]
    model.reset(agent_script(steps=2, calls=calls, text="It is **done**."))
    session = await client.create_session()
    frames = await client.send_and_read(session, "Do it", timestamp=1_700_000_000)
    assert [frame.event for frame in frames] == [
        *("title", "message", "plan", "step"),
        *("tool", "tool", "tool", "tool", "step", "plan", "step"),
        *("tool", "tool", "tool", "tool", "step", "plan"),
        *("message", "done"),
    ]
    assert frames[5].data["result"]["data"]["output"].strip() == "one"
    assert frames[7].data["result"]["data"]["content"] == "one\n"
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
    assert [{"event": frame.event, "data": frame.data} for frame in frames] == history["events"][1:]
    attached = await (await client.open_chat(session, {})).read_all()
    assert [frame.data for frame in attached] == [event["data"] for event in history["events"]]
    shown = (await client.http.post(f"/api/v1/sessions/{session}/shell", json={"session_id": "main"})).json()
    assert shown["code"] == 0
    assert [set(record) for record in shown["data"]["console"]] == [{"ps1", "command", "output"}] * 2
    file = (await client.http.post(f"/api/v1/sessions/{session}/file", json={"file": "/home/ubuntu/a.txt"})).json()
    assert file["data"]["content"] == "one\n"


async def test_question_without_tools_is_answered_without_a_sandbox(
    client: ApiClient, model: ScriptedOpenAI, service: ServiceProcess
) -> None:
    model.reset([plan(message="Paris.")])
    session = await client.create_session()
    frames = await client.send_and_read(session, "What is the capital of France?")
    assert [(frame.event, frame.data.get("content")) for frame in frames] == [
        ("title", None),
        ("message", "Paris."),
        ("done", None),
    ]
    assert not list((service.data_dir / "sandboxes").glob(f"{session}*"))
    assert len(model.asked) == 1


@pytest.mark.parametrize("action", ["interrupt", "stop"])
async def test_interrupt_or_stop_kills_the_process_group_of_a_command_within_a_second(
    client: ApiClient, model: ScriptedOpenAI, action: str
) -> None:
    second, duration = await one_second(client, model), unique_duration()
    script = [
        plan("wait"),
        Reply(calls=[shell(f"(sleep {duration} & sleep {duration}); echo never")]),
        plan(message="Hello."),
    ]
    model.reset(script)
    session = await client.create_session()
    chat = await client.send_message(session, "Wait long")
    await chat.wait_for("tool", status="calling")
    await eventually(lambda: len(find_processes(duration)) == 2, interval=0.02)
    started_at = time.monotonic()
    if action == "stop":
        assert (await client.stop_run(session)).json()["code"] == 0
        new_chat = None
    else:
        new_chat = await client.send_message(session, "Never mind, hello")
    frames = await chat.read_all()
    assert time.monotonic() - started_at < second
    await wait_until_gone(duration, second)
    closed = next(frame for frame in frames if frame.event == "tool" and frame.data["status"] == "called")
    assert closed.data["result"]["success"] is False
    assert closed.data["result"]["message"]
    # Clients take a failed step for the end of the run, so only a stop writes one.
    step_statuses = ["running", "failed"] if action == "stop" else ["running"]
    assert [frame.data["status"] for frame in frames if frame.event == "step"] == step_statuses
    assert [step["status"] for step in [f for f in frames if f.event == "plan"][-1].data["steps"]] == ["failed"]
    assert [frame.event for frame in frames].count("done") == 1
    history = await client.get_session(session)
    check_log(history["events"])
    check_requests(model.asked)
    assert history["status"] == "completed"
    if new_chat is not None:
        messages = [message["content"] for message in model.asked[-1].messages]
        assert duration in str(messages[:-1]), "the planner does not know of the interrupted command"
        assert "Never mind, hello" in messages[-1]
        own = [frame.data for frame in await new_chat.read_all()]
        assert own == [event["data"] for event in history["events"] if event["data"] in own]
    assert (await client.stop_run(session)).json()["code"] == 0
    assert (await client.get_session(session))["events"] == history["events"]


async def test_stop_during_a_model_call_closes_the_connection_to_the_model(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    second = await one_second(client, model)
    model.reset([Reply(text="Once upon", size=2, hang_after=2)])
    session = await client.create_session()
    chat = await client.send_message(session, "Think")
    await asyncio.to_thread(model.wait_for, 1)
    started_at = time.monotonic()
    await client.stop_run(session)
    frames = await chat.read_all()
    assert time.monotonic() - started_at < second
    assert [frame.event for frame in frames] == ["title", "done"]
    assert frames[0].data["title"] == "Think"
    assert await asyncio.to_thread(model.asked[0].disconnected.wait, second)


async def test_question_to_the_user_pauses_the_run_and_the_answer_resumes_it(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    ask = Reply(calls=[shell("echo before"), Call("message_ask_user", {"text": "Which colour?"})])
    model.reset([plan("paint"), ask, Reply(calls=[complete("painted it blue")]), Reply(text="Blue it is.")])
    session = await client.create_session()
    first = await client.send_and_read(session, "Paint")
    assert [frame.event for frame in first][-2:] == ["message", "wait"]
    assert first[-2].data["content"] == "Which colour?"
    assert not any(frame.data.get("function") == "message_ask_user" for frame in first)
    assert (await client.get_session(session))["status"] == "waiting"
    answered = await client.send_and_read(session, "Blue")
    assert [frame.event for frame in answered] == ["step", "plan", "message", "done"]
    answer = model.asked[2].messages[-1]
    assert answer["role"] == "tool"
    assert "Blue" in answer["content"]
    check_log((await client.get_session(session))["events"])
    check_requests(model.asked)


async def test_stop_while_waiting_for_the_user_ends_the_run(client: ApiClient, model: ScriptedOpenAI) -> None:
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


MALFORMED_REPLIES = {
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


@pytest.mark.parametrize("kind", MALFORMED_REPLIES)
async def test_malformed_reply_is_reported_to_the_model_and_the_task_continues(
    client: ApiClient, model: ScriptedOpenAI, kind: str
) -> None:
    model.reset(
        [plan("a"), MALFORMED_REPLIES[kind], MALFORMED_REPLIES[kind], Reply(calls=[complete()]), Reply(text="Done.")]
    )
    session = await client.create_session()
    frames = await client.send_and_read(session, "Go")
    assert [frame.event for frame in frames][-2:] == ["message", "done"]
    assert not any(frame.event == "tool" for frame in frames)
    check_requests(model.asked)
    correction = model.asked[2].messages[-1]
    assert correction["role"] in ("tool", "user")
    assert correction["content"]


@pytest.mark.parametrize("kind", MALFORMED_REPLIES)
async def test_model_with_only_malformed_replies_ends_the_run_with_an_error(
    client: ApiClient, model: ScriptedOpenAI, kind: str
) -> None:
    model.reset(lambda asked: plan("a") if asked.kind == "planning" else MALFORMED_REPLIES[kind])
    session = await client.create_session()
    frames = await client.send_and_read(session, "Go")
    assert frames[-1].event == "error"
    assert "could not be used" in frames[-1].data["error"]
    assert len(model.asked) <= 9  # A reply that is cut off is requested with larger limits first.
    history = await client.get_session(session)
    assert history["status"] == "completed"
    check_log(history["events"])
    model.reset([plan(message="Fine again.")])
    assert (await client.send_and_read(session, "And now?"))[-1].event == "done"


@pytest.mark.parametrize("planning", [Reply(text="no plan"), Reply(text=""), Reply(calls=[Call("create_plan", "{")])])
async def test_planning_reply_without_a_plan_is_corrected(
    client: ApiClient, model: ScriptedOpenAI, planning: Reply
) -> None:
    model.reset([planning, plan(message="Here.")])
    session = await client.create_session()
    frames = await client.send_and_read(session, "Go")
    assert [frame.event for frame in frames] == ["title", "message", "done"]
    assert frames[1].data["content"] == "Here."
    check_requests(model.asked)


async def test_json_text_instead_of_a_call_is_accepted(client: ApiClient, model: ScriptedOpenAI) -> None:
    steps = [{"id": "1", "description": "a"}]
    model.reset(
        [
            Reply(text=json.dumps({"title": "T", "message": "M", "goal": "G", "steps": steps})),
            Reply(text='```json\n{"success": true, "result": "r"}\n```'),
            Reply(text="Done."),
        ]
    )
    frames = await client.send_and_read(await client.create_session(), "Go")
    assert [frame.event for frame in frames] == ["title", "message", "plan", "step", "step", "plan", "message", "done"]


async def test_calls_of_one_turn_with_the_same_id_all_run_and_get_results(
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
    frames = await client.send_and_read(session, "Go")
    tools = [(frame.data["function"], frame.data["status"]) for frame in frames if frame.event == "tool"]
    assert sorted(tools) == sorted(
        (name, status) for name in ("file_write", "file_read", "file_find_by_name") for status in ("calling", "called")
    )
    assert frames[-1].event == "done"
    check_log((await client.get_session(session))["events"])


async def test_completed_step_may_change_the_rest_of_the_plan(client: ApiClient, model: ScriptedOpenAI) -> None:
    changes = {"steps": [{"id": "9", "description": "instead"}]}
    model.reset(
        [
            plan("a", "b", "c"),
            Reply(calls=[complete("first", plan_changes=changes)]),
            Reply(calls=[complete("second")]),
            Reply(text="Done."),
        ]
    )
    frames = await client.send_and_read(await client.create_session(), "Go")
    plans = [[step["description"] for step in frame.data["steps"]] for frame in frames if frame.event == "plan"]
    assert plans == [["a", "b", "c"], ["a", "instead"], ["a", "instead"]]
    assert len(model.asked) == 4


async def test_deltas_precede_the_message_and_are_sent_only_on_request(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    script = [plan("a"), Reply(calls=[complete()]), Reply(text="A rather long answer.", size=4, delay=0.01)]
    for stream in (True, False):
        model.reset(script)
        session = await client.create_session()
        frames = await client.send_and_read(session, "Go", stream=stream)
        deltas = [frame for frame in frames if frame.event == "message_delta"]
        assert bool(deltas) is stream
        assert all(frame.id is None for frame in deltas)
        if stream:
            final = [frame.data["message_id"] for frame in deltas][-1]
            written = "".join(frame.data["delta"] for frame in deltas if frame.data["message_id"] == final)
            assert written == "A rather long answer."
            assert [frame.event for frame in frames][-2:] == ["message", "done"]
        stored = (await client.get_session(session))["events"]
        assert not any(event["event"] == "message_delta" for event in stored)


@pytest.mark.parametrize(
    ("failure", "hint"),
    [
        (Status(status=401, body={"error": {"message": f"bad key {KEY}"}}), "API_KEY"),
        (Status(status=404, body={"error": {"message": "no such model"}}), "MODEL_NAME"),
        (Status(status=400, body={"error": {"message": "too long", "code": "context_length_exceeded"}}), "context"),
    ],
)
async def test_error_of_the_model_server_ends_the_run_with_a_helpful_error(
    client: ApiClient, model: ScriptedOpenAI, failure: Status, hint: str
) -> None:
    model.reset(lambda _: failure)
    session = await client.create_session()
    frames = await client.send_and_read(session, "\nCount  the files\nof this folder")
    assert [frame.event for frame in frames] == ["title", "error"]
    assert frames[0].data["title"] == "Count the files"
    assert hint in frames[1].data["error"]
    assert model.url.partition("//")[2] not in frames[1].data["error"]
    stored = await client.get_session(session)
    assert KEY not in json.dumps(stored["events"])
    assert stored["title"] == "Count the files"
    frames = await client.send_and_read(session, "Again")
    assert [frame.event for frame in frames] == ["error"]


async def test_title_given_during_the_first_model_call_wins_over_that_of_the_agent(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    renamed = threading.Event()

    def answer(asked: Asked) -> Answer:
        renamed.wait(30)
        return plan(message="Hello.")

    model.reset(answer)
    session = await client.create_session()
    chat = await client.send_message(session, "Hello")
    response = await client.http.patch(f"/api/v1/sessions/{session}/title", json={"title": "Mine"})
    assert response.json()["data"] == {"session_id": session, "title": "Mine"}
    renamed.set()
    frames = await chat.read_all()
    assert [frame.data["title"] for frame in frames if frame.event == "title"] == ["Mine", "Mine"]
    assert (await client.get_session(session))["title"] == "Mine"


async def test_model_stream_that_breaks_off_is_requested_again(client: ApiClient, model: ScriptedOpenAI) -> None:
    model.reset([plan("a"), Raw(pieces=[b"data: {"], cut=True), Reply(calls=[complete()]), Reply(text="Done.")])
    frames = await client.send_and_read(await client.create_session(), "Go")
    assert frames[-1].event == "done"
    assert len(model.asked) == 4


async def test_delete_ends_the_run_and_the_sandbox_and_removes_all_data(
    client: ApiClient, model: ScriptedOpenAI, service: ServiceProcess
) -> None:
    duration = unique_duration()
    model.reset([plan("a"), Reply(calls=[shell(f"sleep {duration}")])])
    session = await client.create_session()
    chat = await client.send_message(session, "Go")
    await chat.wait_for("tool", status="calling")
    await eventually(lambda: find_processes(duration), interval=0.02)
    path = f"/api/v1/sessions/{session}"
    assert (await client.http.delete(path)).json() == {"code": 0, "msg": "success", "data": None}
    await chat.read_all()
    await wait_until_gone(duration)
    for response in (await client.http.get(path), await client.http.delete(path), await client.stop_run(session)):
        assert response.status_code == 404
        assert response.json()["code"] == 404
    assert len(model.asked) == 2
    assert not list((service.data_dir / "sandboxes").glob(f"{session}*"))


async def test_concurrent_messages_are_all_read_by_one_run_at_a_time(client: ApiClient, model: ScriptedOpenAI) -> None:
    model.reset(lambda asked: plan(message="Heard."))
    session = await client.create_session()
    chats = await asyncio.gather(*(client.send_message(session, f"word-{n}") for n in range(20)))
    for chat in chats:
        await chat.read_all()
    history = await client.get_session(session)
    check_log(history["events"])
    users = [event["data"]["content"] for event in history["events"] if event["data"].get("role") == "user"]
    assert sorted(users) == sorted(f"word-{n}" for n in range(20))
    messages = json.dumps(model.asked[-1].messages)
    assert all(f"word-{n}\\n" in messages or f"word-{n}\\\\n" in messages for n in range(20))


async def test_repeated_idempotency_key_stores_one_message(client: ApiClient, model: ScriptedOpenAI) -> None:
    model.reset(lambda asked: plan(message="Once."))
    session = await client.create_session()
    headers = {"Idempotency-Key": "k1"}
    chats = await asyncio.gather(*(client.open_chat(session, {"message": "Go"}, headers) for _ in range(30)))
    ends = [[frame.raw for frame in await chat.read_all()] for chat in chats]
    assert all(end == ends[0] for end in ends)
    history = await client.get_session(session)
    assert [event["event"] for event in history["events"]] == ["message", "title", "message", "done"]
    assert len(model.asked) == 1


async def test_run_continues_after_a_kill_without_repeating_a_command(
    own_service: ServiceProcess, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    duration = unique_duration()
    model.reset(
        [
            plan("a"),
            Reply(calls=[shell(f"echo one >> {marks}")]),
            Reply(calls=[shell(f"echo two >> {marks}; sleep {duration}")]),
            Reply(calls=[complete()]),
            Reply(text="Done after all."),
        ]
    )
    client = await own_service.start()
    session = await client.create_session()
    chat = await client.send_message(session, "Go")
    await eventually(lambda: find_processes(duration), interval=0.02)
    await own_service.kill()
    await chat.read_all()
    await client.close()
    await wait_until_gone(duration)
    last = max(int(frame.id or 0) for frame in chat.frames)
    client = await own_service.start()
    rest = await (await client.open_chat(session, {"event_id": f"{last:012d}"})).read_all()
    assert rest[-1].event == "done"
    history = await client.get_session(session)
    assert [frame.data for frame in chat.frames + rest] == [event["data"] for event in history["events"][1:]]
    check_log(history["events"])
    check_requests(model.asked)
    assert marks.read_text() == "one\ntwo\n"
    interrupted = [m["content"] for m in model.asked[3].messages if m["role"] == "tool"][-1]
    assert "unknown" in interrupted
    await client.close()


async def test_shell_of_the_model_cannot_read_the_secrets_of_the_service(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    command = "env; cat /proc/$PPID/environ | tr '\\0' '\\n'; cat /proc/self/environ"
    model.reset(agent_script(steps=1, calls=[shell(command)]))
    session = await client.create_session()
    frames = await client.send_and_read(session, "Look around")
    assert KEY not in json.dumps([frame.data for frame in frames])


async def test_sigterm_ends_open_streams_and_the_process_within_seconds(
    model: ScriptedOpenAI, own_service: ServiceProcess
) -> None:
    client = await own_service.start()
    second = await one_second(client, model)
    model.reset([Reply(text="x", hang_after=0)])
    session = await client.create_session()
    chats = [await client.send_message(session, "Go"), *[await client.open_chat(session, {}) for _ in range(50)]]
    started_at = time.monotonic()
    assert await own_service.stop() in (0, -signal.SIGTERM)
    assert time.monotonic() - started_at < 5 * second
    for chat in chats:
        await chat.read_all()
    await client.close()


async def test_real_model_without_docker_gets_no_unisolated_shell_by_default(
    model: ScriptedOpenAI, tmp_path: Path
) -> None:
    model.reset(agent_script(steps=1, calls=[shell("id")]))
    missing_socket = f"unix://{tmp_path}/docker.sock"
    service = ServiceProcess(
        tmp_path / "data", API_KEY=KEY, API_BASE=model.url, SANDBOX_PROVIDER="auto", DOCKER_HOST=missing_socket
    )
    client = await service.start()
    frames = await client.send_and_read(await client.create_session(), "Go")
    called = next(frame for frame in frames if frame.event == "tool" and frame.data["status"] == "called")
    assert called.data["result"]["success"] is False
    assert "SANDBOX_PROVIDER=local" in called.data["result"]["message"]
    assert frames[-1].event == "done"
    await client.close()
    await service.stop()
