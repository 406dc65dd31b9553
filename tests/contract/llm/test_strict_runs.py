"""Whole runs through the real adapter against a server with the rules of the strictest ones."""

import base64
import io
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest
from PIL import Image

from app.domain.models.browser import PageView
from app.domain.models.event import TERMINAL
from app.domain.models.model_profile import ModelProfile
from app.domain.models.sandbox import FileImage
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.llm.request_encoder import BRIDGE, NO_RESULT
from app.infrastructure.queue.supervisor import InlineRunQueue
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_openai import Answer, Asked, Call, Raw, Reply, ScriptedOpenAI, Status, agent_script
from tests.support.agent_runs import make_worker
from tests.support.eventually import eventually
from tests.support.invariants import check_requests

READ = Call("file_read", {"file": "/notes.txt"})
ASK = Call("message_ask_user", {"text": "Which one?"})
DONE = Call("complete_step", {"success": True, "result": "done"})
RUN = Call("shell_exec", {"id": "s", "exec_dir": "/", "command": "true"})
HANG = Call("shell_exec", {"id": "s", "exec_dir": "/", "command": "hang"})
WORK = agent_script(steps=2, calls=[READ, Call("python.run", "{"), READ])


class StrictSession:
    """A session whose runs call a strict server over HTTP."""

    def __init__(self, server: ScriptedOpenAI, model: OpenAIModel) -> None:
        self.server = server
        self.store = MemoryStore()
        self.sandboxes = MemorySandboxProvider()
        self.model = model
        self.browsers = MemoryBrowsers()
        self.queue = self._queue()

    def _queue(self) -> InlineRunQueue:
        worker = make_worker(self.store, self.model, sandboxes=self.sandboxes, browsers=self.browsers)
        return InlineRunQueue(worker)

    async def open(self) -> None:
        await self.store.create("s", owner="", at=0)
        (await self.sandboxes.acquire("s")).script("hang", hangs=True)

    async def send(self, message: str = "Do it.") -> None:
        stored = await self.store.append_user_message("s", message, at=1, key=None)
        await self.queue.wake("s", up_to=stored.number, owner="")

    async def events(self) -> list[str]:
        return [record.type for record in await self.store.read("s", after=0, limit=10_000)]

    async def run(self, message: str = "Do it.") -> str:
        """Send a message, and return the event that ended its run."""
        before = len(await self.events())
        await self.send(message)
        return await self.ended(before)

    async def ended(self, before: int) -> str:
        """Wait for an event that ends a run, after the first `before` ones, and return its type."""

        async def terminal() -> str:
            return next((event for event in (await self.events())[before:] if event in TERMINAL), "")

        return await eventually(terminal)

    async def restart(self) -> None:
        await self.queue.close()
        self.queue = self._queue()

    def check(self) -> None:
        assert self.server.violations == []
        assert not any(NO_RESULT.encode() in asked.raw for asked in self.server.asked), "a call had no result in time"
        check_requests(self.server.asked)


@pytest.fixture
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(strict=True) as server:
        yield server


@pytest.fixture(params=[False])
async def session(server: ScriptedOpenAI, request: pytest.FixtureRequest) -> AsyncIterator[StrictSession]:
    """Return a session; the parameter is whether its model sees pictures."""
    profile = ModelProfile(model="m", vision=request.param)
    model = OpenAIModel(api_key="k", base_url=server.url, model="m", profile=profile, timeout_seconds=10)
    session = StrictSession(server, model)
    await session.open()
    yield session
    await session.queue.close()
    await model.close()


async def test_small_talk_and_plans_in_turn_pass(session: StrictSession) -> None:
    def script(asked: Asked) -> Answer:
        small_talk = asked.kind == "planning" and "Hello" in str(asked.messages[-1]["content"])
        return Reply(calls=[Call("create_plan", {"message": "Hi."})]) if small_talk else WORK(asked)

    session.server.script = script
    assert [await session.run(text) for text in ("Hello", "Do it.", "Hello", "More.")] == ["done"] * 4
    session.check()


async def test_unusable_replies_pass(session: StrictSession) -> None:
    prose, nothing = Reply(text="I think about it."), Reply()
    bad_calls = Reply(calls=[Call("no function!", "[1]", id="x" * 85), Call("file_read", "{", id="x" * 85)])
    plan = Reply(calls=[Call("create_plan", {"message": "m", "steps": [{"id": "1", "description": "d"}]})])
    session.server.script = [
        *(prose, bad_calls, nothing, plan),
        *(prose, bad_calls, nothing, Reply(calls=[READ]), bad_calls, prose, prose, Reply(calls=[DONE])),
        *(nothing, bad_calls, Reply(text="Done.")),
    ]
    assert await session.run() == "done"
    session.check()


async def test_turns_that_span_steps_and_circles_pass(session: StrictSession) -> None:
    def script(asked: Asked) -> Answer:
        if asked.kind != "executing":
            return WORK(asked)
        if "complete_step" not in str(asked.messages):
            return Reply(calls=[READ, DONE, READ, RUN, READ])
        return Reply(calls=[RUN, READ])

    session.server.script = script
    assert [await session.run(), await session.run()] == ["done", "done"]
    session.check()


async def test_question_and_answer_pass(session: StrictSession) -> None:
    def script(asked: Asked) -> Answer:
        if asked.kind != "executing":
            return WORK(asked)
        asked_before = "message_ask_user" in str(asked.messages)
        return Reply(calls=[READ, DONE] if asked_before else [READ, ASK, DONE])

    session.server.script = script
    assert [await session.run(), await session.run("The first one.")] == ["wait", "done"]
    session.check()


async def test_messages_after_an_error_pass(session: StrictSession) -> None:
    refusal = Status(status=401, body={"error": {"message": "no"}})
    session.server.script = lambda asked: refusal if asked.kind == "planning" else WORK(asked)
    assert [await session.run(), await session.run()] == ["error", "error"]
    session.server.script = lambda asked: refusal if asked.kind == "executing" else WORK(asked)
    assert [await session.run(), await session.run()] == ["error", "error"]
    session.server.script = WORK
    assert await session.run() == "done"
    session.check()


async def test_messages_after_interrupt_stop_and_restart_pass(session: StrictSession) -> None:
    def script(asked: Asked) -> Answer:
        return Reply(calls=[READ, HANG, READ]) if asked.kind == "executing" else WORK(asked)

    session.server.script = script
    await session.send()
    await eventually(lambda: _calling(session, 2))
    await session.send("Something else.")
    await eventually(lambda: _calling(session, 4))
    before = len(await session.events())
    await session.queue.stop_run("s", up_to=session.store.last_user_message("s"))
    assert await session.ended(before) == "done"
    await session.restart()
    session.server.script = WORK
    assert await session.run("Once more.") == "done"
    session.check()


REASONING = {"reasoning_content": "I think."}
SIGNATURE = {"extra_content": {"google": {"thought_signature": "s"}}}


def _thinking(turn: Answer) -> Answer:
    """Return the turn with reasoning, and with a signature on each of its calls."""
    if not isinstance(turn, Reply):
        return turn
    calls = [
        {
            "index": n,
            "id": "c",
            "type": "function",
            "function": {"name": call.name, "arguments": call.text},
            **SIGNATURE,
        }
        for n, call in enumerate(turn.calls)
    ]
    delta = {"content": turn.text, **REASONING, **({"tool_calls": calls} if calls else {})}
    chunks = [{"delta": delta}, {"delta": {}, "finish_reason": turn.reason}]
    pieces = [b"data: " + orjson.dumps({"choices": [{"index": 0, **chunk}]}) + b"\n\n" for chunk in chunks]
    return Raw(pieces=[*pieces, b"data: [DONE]\n\n"])


async def test_reasoning_and_signatures_come_back_with_every_turn(session: StrictSession) -> None:
    def script(asked: Asked) -> Answer:
        turns = [message for message in asked.messages if message["role"] == "assistant"]
        turns = [turn for turn in turns if turn["content"] != BRIDGE]
        calls = [call for turn in turns for call in turn.get("tool_calls", ())]
        missing = [turn for turn in turns if turn.get("reasoning_content") != REASONING["reasoning_content"]]
        missing += [call for call in calls if call.get("extra_content") != SIGNATURE["extra_content"]]
        if missing:
            return Status(status=400, body={"error": {"message": f"reasoning or signatures are missing: {missing}"}})
        return _thinking(WORK(asked))

    session.server.reset(script)
    session.server.strict = False  # the strictest server knows no fields beyond the standard
    assert [await session.run(), await session.run("More.")] == ["done", "done"]
    await session.restart()
    assert await session.run("And more.") == "done"


PICTURES = (Call("image_view", {"file": "~/a.png"}), Call("browser_view", {}))


async def _run_with_pictures(session: StrictSession) -> list[Asked]:
    """Let the model look at a file and at a page in the same turn. Return the requests of the steps."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32)).save(buffer, "JPEG")
    picture = FileImage(file="/home/ubuntu/a.png", jpeg=buffer.getvalue(), original_width=64, original_height=32)
    session.sandboxes.sandboxes["s"].images[picture.file] = picture
    session.browsers.prepare("s").pages = [PageView(url="u", title="t", text="x", screenshot=picture.jpeg)]

    def script(asked: Asked) -> Answer:
        if asked.kind != "executing":
            return WORK(asked)
        return Reply(calls=[DONE] if "image_view" in str(asked.messages) else PICTURES)

    session.server.script = script
    assert await session.run() == "done"
    session.check()
    return [asked for asked in session.server.asked if asked.kind == "executing"]


@pytest.mark.parametrize("session", [True], indirect=True)
async def test_model_that_sees_gets_the_pictures_after_their_results(session: StrictSession) -> None:
    first, second = (await _run_with_pictures(session))[:2]
    assert "image_view" in first.tools
    roles = [message["role"] for message in second.messages[-5:]]
    assert roles == ["assistant", "tool", "tool", "assistant", "user"]
    parts = second.messages[-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url"]
    sent = base64.b64decode(parts[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(sent)).size == (64, 32)


async def test_model_that_does_not_see_gets_text_only(session: StrictSession) -> None:
    first, second = (await _run_with_pictures(session))[:2]
    assert "image_view" not in first.tools
    assert "browser_view" in first.tools
    assert "image_url" not in str(second.messages)


async def _calling(session: StrictSession, count: int) -> bool:
    """Return whether `count` tool calls began: in each run, the one that hangs is the second."""
    records = await session.store.read("s", after=0, limit=10_000)
    return sum(b'"calling"' in record.data for record in records) >= count


@pytest.mark.parametrize("thought", ["<think>My thought.</think>\n", "My thought.\n</think>\n"])
@pytest.mark.parametrize(
    "call", ["<tool_call>{json}</tool_call>", "{json}", "```json\n{json}\n```", "[TOOL_CALLS][{json}]"]
)
async def test_run_of_a_model_without_tool_call_parser_passes(session: StrictSession, call: str, thought: str) -> None:
    def script(asked: Asked) -> Answer:
        reply = WORK(asked)
        assert isinstance(reply, Reply)
        objects = [f'{{"name":"{call.name}","arguments":{call.text}}}' for call in reply.calls]
        return Reply(text=thought + (reply.text or "\n".join(call.replace("{json}", text) for text in objects)))

    session.server.script = script
    assert await session.run() == "done"
    stored = str(await session.store.read("s", after=0, limit=10_000))
    assert not any(word in stored for word in ("thought", "think", "TOOL_CALLS", "tool_call>", "```"))
    session.check()


async def test_run_of_a_model_whose_markup_cannot_be_read_names_the_cause(session: StrictSession) -> None:
    session.server.script = lambda _asked: Reply(text="<tool_call>{name = create_plan}</tool_call>")
    assert await session.run() == "error"
    stored = str(await session.store.read("s", after=0, limit=10_000))
    assert "--enable-auto-tool-choice" in stored and "tool_call>" not in stored
