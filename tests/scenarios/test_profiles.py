"""A session whose model changes between two messages: two strict servers with other windows and fields."""

from pathlib import Path

import httpx

from app.main import create_app
from app.settings import Settings
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.scripted_openai import Answer, Asked, Raw, Reply, ScriptedOpenAI
from tests.scenarios.harness import ReportSandbox
from tests.scenarios.slips import chunk
from tests.support.invariants import check_log
from tests.support.metering import MeteredModel
from tests.support.service import ApiClient
from tests.support.task_models import MESSAGE, WORD, Task, TaskModel

THOUGHT = "the private thoughts of the large model"

CONFIG = """\
default = "large"

[models.large]
model = "large"
base_url = "{large}"
context_tokens = 64_000

[models.small]
model = "small"
base_url = "{small}"
context_tokens = 9_000
max_tokens = 1_000
"""


class ThinkingModel:
    """A script that thinks before each turn of a task, and refuses a turn of its own that comes back without it."""

    def __init__(self, inner: TaskModel) -> None:
        self.forgotten = 0
        """Number of requests with turns whose thoughts are missing."""
        self._inner = inner

    def __call__(self, asked: Asked) -> Answer:
        turns = [message for message in asked.messages if message.get("tool_calls")]
        self.forgotten += any(message.get("reasoning_content") != THOUGHT for message in turns)
        answer = self._inner(asked)
        assert isinstance(answer, Reply)
        calls = [
            {"index": n, "id": f"c{n}", "function": {"name": call.name, "arguments": call.text}}
            for n, call in enumerate(answer.calls)
        ]
        return Raw(
            pieces=[
                chunk({"reasoning_content": THOUGHT}),
                chunk({"tool_calls": calls} if calls else {"content": answer.text}),
                chunk({}, answer.reason),
                b"data: [DONE]\n\n",
            ]
        )


async def test_session_goes_on_with_a_model_of_a_smaller_window(tmp_path: Path) -> None:
    thinking = ThinkingModel(TaskModel(Task(steps=3, turns=12)))
    large = MeteredModel(thinking, window=64_000, extra_fields=frozenset({"reasoning_content"}))
    small = MeteredModel(TaskModel(Task(steps=2, turns=8), few_calls=True), window=9_000)
    sandboxes = MemorySandboxProvider()
    with ScriptedOpenAI(large, record=False) as first, ScriptedOpenAI(small, record=False) as second:
        (tmp_path / "models.toml").write_text(CONFIG.format(large=first.url, small=second.url))
        settings = Settings(
            _env_file=None,
            models_config=str(tmp_path / "models.toml"),
            data_dir=tmp_path / "data",
            log_level="WARNING",
        )
        app = create_app(settings, sandboxes=sandboxes)
        async with app.router.lifespan_context(app):
            client = ApiClient("http://127.0.0.1", httpx.ASGITransport(app))
            session_id = await client.create_session()
            sandboxes.prepared[session_id] = ReportSandbox()
            await client.send_and_read(session_id, MESSAGE)
            frames = await client.send_and_read(session_id, "Once more.", model="small")
            asked = large.newest
            assert frames[-2].data["content"].endswith(WORD), frames[-1]
            large.script = TaskModel(Task(steps=1, turns=2))
            back = await client.send_and_read(session_id, "And with the large one.", model="large")
            check_log((await client.get_session(session_id))["events"])
            await client.close()
    assert frames[-1].event == back[-1].event == "done"
    assert back[-2].data["content"].endswith(WORD)
    assert not large.figures.refusals and not small.figures.refusals
    assert not large.figures.overflows and not small.figures.overflows
    assert not thinking.forgotten
    assert large.newest is not asked
    assert small.newest is not None and THOUGHT.encode() not in small.newest.raw
