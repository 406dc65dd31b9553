"""Tool results that are too long for the model: both ends are shown, and the whole is in a file of the sandbox."""

import re

import pytest

from app.domain.errors import SandboxFailure
from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.message import ToolMessage
from app.domain.models.model_profile import ModelProfile
from app.domain.models.sandbox import ShellState
from app.domain.prompts import compaction
from tests.fakes.memory_sandbox import HOME, MemorySandbox, MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import ScriptedLLM, calls, completes_step, creates_plan, runs_command, says
from tests.support.agent_runs import make_worker

LINES = "".join(f"line {number}\n" for number in range(3_000))
READS = calls(("file_read", {"file": "~/big.txt"}))


class Session:
    """A session whose model makes one call; `result` returns what it is told."""

    def __init__(self, *, window: int = 128_000) -> None:
        self.window = window
        self.sandboxes = MemorySandboxProvider()
        self.sandbox = self.sandboxes.prepared["s"] = MemorySandbox()

    async def result(self, call: ModelReply) -> ToolMessage:
        store = MemoryStore()
        await store.create("s", owner="", at=1)
        await store.append_user_message("s", "do it", at=1, key=None)
        profile = ModelProfile(identity="m", context_tokens=self.window, max_tokens=500)
        model = ScriptedLLM([creates_plan("one"), call, completes_step(), says("Done.")], profile=profile)
        await make_worker(store, model, sandboxes=self.sandboxes).work("s", Attempt(reason=""))
        messages = await store.load_transcript("s", "executor")
        return next(message for message in messages if isinstance(message, ToolMessage))

    def lines_named(self, message: ToolMessage, text: str) -> str:
        """Return the lines of `text` that the note in `message` names."""
        found = re.search(r"start_line (\d+) to end_line (\d+)", message.content)
        assert found is not None, message.content
        return "".join(text.splitlines(keepends=True)[int(found[1]) : int(found[2])])


def without_note(content: str) -> tuple[str, str]:
    head, _, rest = content.partition("\n[... ")
    return head, rest.partition(" ...]\n")[2]


async def test_long_output_is_written_to_a_file_and_the_note_names_the_omitted_lines() -> None:
    session = Session()
    session.sandbox.script("make", LINES)
    message = await session.result(runs_command("make"))
    assert re.fullmatch(r"~/\.anker/results/shell_exec-[0-9a-f]{10}\.txt", message.file)
    assert message.file in message.content
    assert len(message.content) < 16_500
    assert message.content.endswith("[exit code 0]")
    saved = session.sandbox.files[message.file.replace("~", HOME)]
    assert saved == f"{LINES}[exit code 0]"
    head, tail = without_note(message.content)
    omitted = session.lines_named(message, saved)
    start = saved.index(omitted)
    assert start <= len(head) < start + len(omitted)
    assert start < len(saved) - len(tail) <= start + len(omitted)


async def test_same_result_is_shortened_to_the_same_text() -> None:
    session = Session()
    session.sandbox.script("make", LINES)
    assert await session.result(runs_command("make")) == await session.result(runs_command("make"))


async def test_output_that_the_sandbox_keeps_in_a_file_is_not_written_again() -> None:
    session = Session(window=16_000)

    async def shell_exec(shell_id: str, exec_dir: str, command: str) -> ShellState:
        return ShellState(shell_id=shell_id, status="completed", returncode=0, output=LINES, output_file="/out/7")

    session.sandbox.shell_exec = shell_exec  # type: ignore[method-assign]
    message = await session.result(runs_command("make"))
    assert message.file == "/out/7"
    assert "the whole is in /out/7" in message.content
    assert session.sandbox.files == {}


async def test_long_file_is_not_copied_and_the_note_names_its_lines() -> None:
    session = Session()
    session.sandbox.files[f"{HOME}/big.txt"] = LINES
    message = await session.result(calls(("file_read", {"file": "~/big.txt", "start_line": 100})))
    assert message.file == "~/big.txt"
    assert list(session.sandbox.files) == [f"{HOME}/big.txt"]
    omitted = session.lines_named(message, LINES)
    head, _ = without_note(message.content)
    assert omitted.startswith(head.rpartition("\n")[2])


async def test_masked_output_that_was_short_enough_is_still_found_in_its_file() -> None:
    session = Session()
    session.sandbox.files[f"{HOME}/big.txt"] = "word " * 200
    message = await session.result(READS)
    assert message.content == "word " * 200
    assert "the whole result is in ~/big.txt" in compaction.masked([message], images_only=False)[0].content


async def test_limit_shrinks_with_the_window_and_with_dense_text() -> None:
    lengths: list[int] = []
    for window, text in ((128_000, LINES), (16_000, LINES), (16_000, "数据" * 8_000), (16_000, "ab12+/" * 5_000)):
        session = Session(window=window)
        session.sandbox.files[f"{HOME}/big.txt"] = text
        lengths.append(len((await session.result(READS)).content))
    assert lengths[0] > lengths[1] > 1_500
    assert lengths[1] > lengths[2]
    assert lengths[1] > lengths[3]


@pytest.mark.parametrize("before", ["", "first\n"])
async def test_rest_of_a_long_line_is_read_by_characters(before: str) -> None:
    session = Session()
    text = "".join(f"{number} " for number in range(7_000))
    session.sandbox.files[f"{HOME}/big.txt"] = before + text
    line = before.count("\n")
    where = {"file": "~/big.txt", "start_line": line}
    seen = (await session.result(calls(("file_read", where)))).content
    position = f"read it with file_read, start_line {line}, from start_char "
    start, end = re.findall(rf"{position}(\d+) to end_char (\d+)", seen)[0]
    session = Session()
    session.sandbox.files[f"{HOME}/big.txt"] = before + text
    args = {**where, "start_char": int(start), "end_char": int(start) + 9_000}
    part = (await session.result(calls(("file_read", args)))).content
    assert part == text[int(start) : int(start) + 9_000] and seen.startswith(text[: int(start)])
    assert seen.endswith(text[int(end) :])
    session = Session()
    session.sandbox.files[f"{HOME}/big.txt"] = before + text
    rest = (await session.result(calls(("file_read", {**where, "start_char": 5_000})))).content
    start, end = map(int, re.findall(rf"{position}(\d+) to end_char (\d+)", rest)[0])
    assert rest.startswith(text[5_000:start]) and rest.endswith(text[end:])


async def test_result_is_shortened_without_a_file_if_none_can_be_written() -> None:
    session = Session()
    session.sandbox.script("make", LINES)

    async def refuse(*_: object, **__: object) -> int:
        raise SandboxFailure("the disk is full")

    session.sandbox.file_write = refuse  # type: ignore[method-assign]
    message = await session.result(runs_command("make"))
    assert message.file == ""
    assert "characters left out ...]" in message.content
    assert len(message.content) < 16_500


@pytest.mark.parametrize("length", [0, 10, 15_000])
async def test_short_result_is_returned_whole_without_a_file(length: int) -> None:
    session = Session()
    text = ("line " * 3_000)[:length]
    session.sandbox.script("make", text)
    message = await session.result(runs_command("make"))
    assert message.content == f"{text}\n[exit code 0]".lstrip("\n")
    assert message.file == ""
    assert session.sandbox.files == {}
