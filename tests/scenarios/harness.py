"""The real service in this process, with a sandbox in memory, before a scripted model behind real HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from app.domain.models.sandbox import ShellState
from app.main import create_app
from app.settings import Settings
from tests.fakes.memory_sandbox import MemorySandbox, MemorySandboxProvider
from tests.fakes.scripted_openai import Answer, Asked, ScriptedOpenAI
from tests.support.invariants import check_log
from tests.support.metering import Figures, MeteredModel
from tests.support.service import ApiClient
from tests.support.sse import SseFrame
from tests.support.task_models import MESSAGE, WORD

WINDOW = 16_000
"""Context size in tokens."""

REPLY_TOKENS = 2_000
"""Value of `MAX_TOKENS`: what a prompt must leave free for the reply."""

Print = Callable[[str, object], None]
"""The fixture `record_property`. conftest.py prints what is recorded below `scenario`."""


class ReportSandbox(MemorySandbox):
    """A sandbox with the commands `report NUMBER`, which prints 700 characters, and `flood NUMBER`: 2 MB."""

    polls = 0
    """Number of times that `poll` was run; it prints a new number each time."""

    async def shell_exec(self, shell_id: str, exec_dir: str, command: str) -> ShellState:
        name, _, number = command.partition(" ")
        if name in ("report", "flood"):
            lines = 12 if name == "report" else 40_000
            line = f"report {number}: value {{}} is within its bounds, station {number}\n"
            self.script(command, "".join(line.format(value) for value in range(lines)))
        elif name == "poll":
            self.polls += 1
            self.script(command, f"{self.polls} of 30 are done\n")
        return await super().shell_exec(shell_id, exec_dir, command)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A session of the service, and the model server behind it."""

    model: MeteredModel
    client: ApiClient
    sandbox: ReportSandbox
    session_id: str

    @property
    def figures(self) -> Figures:
        """What the model server counted so far."""
        return self.model.figures

    async def say(self, message: str = MESSAGE) -> list[SseFrame]:
        """Send a message, wait until the run rests, and return the frames of its stream."""
        stream = await self.client.send_message(self.session_id, message)
        return await stream.read_all(seconds=100)

    async def events(self) -> list[dict[str, Any]]:
        """Return the history of the session."""
        return (await self.client.get_session(self.session_id))["events"]

    async def check_done(self, frames: list[SseFrame]) -> None:
        """Check that the run ended with an answer that holds the word of the first message, and that it fitted."""
        assert [frame.event for frame in frames][-2:] == ["message", "done"], frames[-1]
        assert frames[-2].data["content"].endswith(WORD)
        await self.check_limits()

    async def check_limits(self, *, ended: bool = True) -> None:
        """Check what holds however a run ends: the server refused nothing but what was too long.

        Args:
            ended: Whether the run ended, and does not rest.
        """
        assert not self.figures.refusals
        assert self.figures.largest_prompt <= WINDOW - REPLY_TOKENS
        check_log(await self.events(), ended=ended)

    def print(self, record: Print, name: str) -> None:
        """Record the figures for the table at the end of the test run."""
        figures, newest = self.figures, self.model.newest
        known = newest is not None and WORD.encode() in newest.raw
        values = {
            "scenario": name,
            "calls": f"{figures.calls}",
            "prompt tokens": f"{figures.prompt_tokens:,}",
            "identical": f"{figures.identical_share:.1%}",
            "largest prompt": f"{figures.largest_prompt:,}",
            "overflows": f"{figures.overflows}",
            "outside": f"{mean(figures.outside_milliseconds):.1f} ms",
            "fact known": "yes" if known else "NO",
        }
        record("scenario", values)


@asynccontextmanager
async def open_scenario(
    script: Callable[[Asked], Answer], folder: Path, *, bytes_per_token: float | None = None, **settings: Any
) -> AsyncIterator[Scenario]:
    """Run the service on a new data directory in `folder` before `script`, and yield a new session of it."""
    more = {} if bytes_per_token is None else {"bytes_per_token": bytes_per_token}
    model = MeteredModel(script, window=WINDOW, **more)
    sandboxes = MemorySandboxProvider()
    with ScriptedOpenAI(model, record=False) as server:
        values = {
            "api_key": "sk-scenario",
            "api_base": server.url,
            "model_name": "scripted",
            "model_context_tokens": WINDOW,
            "max_tokens": REPLY_TOKENS,
            "data_dir": folder / "data",
            "log_level": "WARNING",
        }
        app = create_app(Settings(_env_file=None, **values | settings), sandboxes=sandboxes)
        async with app.router.lifespan_context(app):
            client = ApiClient("http://127.0.0.1", httpx.ASGITransport(app))
            session_id = await client.create_session()
            sandbox = sandboxes.prepared[session_id] = ReportSandbox()
            yield Scenario(model, client, sandbox, session_id)
            await client.close()
