"""`check-model`: what a person reads about servers with one flaw each, and what is saved."""

import asyncio
import os
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from app.check_model import main
from app.domain.models.model_profile import ModelProfile
from app.infrastructure.llm.check.check import check_endpoint
from app.infrastructure.llm.check.findings import Finding, Verdict
from tests.fakes.flawed_model import KEY, FlawedModel, refusal
from tests.fakes.scripted_openai import Answer, Asked, Raw, Reply, ScriptedOpenAI
from tests.support.service import ROOT


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(record=False) as server:
        yield server


@pytest.fixture
def server(running_server: ScriptedOpenAI) -> ScriptedOpenAI:
    running_server.reset(FlawedModel())
    return running_server


@dataclass
class Checked:
    """The result of a check."""

    findings: dict[str, Finding] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=lambda: Verdict(usable=False, text="", facts={}))

    def add(self, finding: Finding) -> None:
        self.findings[finding.probe] = finding

    def of_level(self, *levels: str) -> list[str]:
        return [probe for probe, finding in self.findings.items() if finding.level in levels]


async def check(
    server: ScriptedOpenAI, *, key: str = KEY, url: str = "", seconds: float = 30, **profile: Any
) -> Checked:
    """Check the scripted server."""
    checked = Checked()
    checked.verdict = await check_endpoint(
        profile=ModelProfile(**{"model": "test-model", "identity": "test", "context_tokens": 32_000} | profile),
        base_url=url or server.url,
        api_key=key,
        temperature=0.7,
        seconds=seconds,
        report=checked.add,
    )
    return checked


async def test_good_model_is_usable_and_its_facts_are_found(server) -> None:
    checked = await check(server)
    assert checked.verdict.text == "usable"
    assert checked.of_level("warning", "problem") == []
    assert checked.of_level("info") == ["reasoning", "strictness"]
    assert checked.verdict.facts == {"parallel_calls": True, "vision": True, "context_tokens": 32_000}
    assert "first token after" in checked.findings["streaming"].text
    assert "6,643 characters" in checked.findings["long arguments"].text
    assert "31,000 tokens" in checked.findings["context"].text
    assert "from the cache" in checked.findings["prompt caching"].text


@pytest.mark.parametrize(
    ("flaws", "probe", "level", "text", "advice"),
    [
        ({"calls": "text"}, "tool calls", "warning", "arrive as text; Anker understands", "--tool-call-parser"),
        ({"calls": "odd text"}, "tool calls", "problem", "not understood: “I would use", "--tool-call-parser"),
        ({"calls": "none"}, "tool calls", "problem", "no call; it wrote “It is about", "llama.cpp --jinja"),
        ({"calls": "faulty"}, "tool calls", "warning", "faulty call: “get_temperature({Oslo)”", "corrections"),
        (
            {"refuses_tools": '"auto" tool choice requires --enable-auto-tool-choice'},
            *("tool calls", "problem", 'refuses tools: "auto" tool choice requires', "--enable-auto-tool-choice"),
        ),
        ({"parallel": False}, "parallel calls", "info", "one call in each turn", ""),
        ({"parallel": False}, "strictness", "info", "refuses two calls in one turn; Anker sends none", ""),
        ({"parallel": False}, "history", "ok", "takes it as Anker sends it", ""),
        ({"usage": False}, "streaming", "warning", "no usage in the stream", "costs are unknown"),
        ({"streams": False}, "streaming", "warning", "arrived at once", "buffering"),
        ({"caches": False}, "prompt caching", "info", "no tokens of a repeated prompt came from", ""),
        ({"sees": None}, "vision", "info", "refuses pictures: This model does not support image input.", ""),
        ({"sees": False}, "vision", "info", "does not see them: “Red and blue.”", ""),
        ({"strict": True}, "strictness", "info", "refuses user after tool, user after user, ids of 85", ""),
        ({"strict": True}, "history", "ok", "takes it as Anker sends it", ""),
        ({"reasoning": "plain"}, "reasoning", "ok", "sends reasoning_content and takes it back", ""),
        ({"reasoning": "demanded"}, "reasoning", "ok", "sends reasoning_content and must have it back", ""),
        ({"reasoning": "refused"}, "reasoning", "ok", "sends reasoning_content, but refuses it", ""),
        ({"only_temperature": 1}, "temperature", "info", "refuses the one that is set", ""),
        ({"output_tokens": 800}, "long arguments", "warning", "cut after 3,200 characters: the server ends", "limit"),
        ({"largest_limit": 3_000}, "long arguments", "ok", "6,643 characters arrived whole", ""),
        ({"window": 20_000}, "context", "warning", "refuses longer prompts: This model's maximum", "20000"),
        ({"window": 24_000, "truncates": True}, "context", "warning", "silently cuts longer prompts", "Ollama"),
        ({"window": 4_096, "truncates": True}, "context", "problem", "silently cuts longer prompts", "Ollama"),
        ({"window": 800}, "context", "problem", "even at 1,937 tokens: This model's maximum", "--max-model-len"),
    ],
    ids=lambda value: ",".join(f"{name}={it}"[:24] for name, it in value.items()) if isinstance(value, dict) else "",
)
async def test_flaw_is_reported_with_what_to_do(server, flaws, probe, level, text, advice) -> None:
    server.reset(FlawedModel(**flaws))
    checked = await check(server)
    finding = checked.findings[probe]
    assert finding.level == level
    assert text in finding.text
    assert advice in finding.advice
    assert checked.verdict.usable == (level != "problem")
    if level in ("ok", "info"):
        assert checked.verdict.text == "usable"


@pytest.mark.parametrize(
    ("flaws", "verdict", "facts"),
    [
        ({"calls": "text"}, "usable with limits: tool calls arrive as text", {}),
        ({"calls": "none"}, "not usable: it makes no tool calls", {}),
        ({"parallel": False, "sees": None}, "usable", {"parallel_calls": False, "vision": False}),
        ({"reasoning": "refused"}, "usable", {"thinking_replay": False}),
        ({"reasoning": "demanded"}, "usable", {"thinking_replay": True}),
        ({"only_temperature": 1}, "usable", {"temperature": "none"}),
        ({"largest_limit": 3_000}, "usable", {"output_limit": 3_000, "max_tokens": 2_000}),
        (
            {"output_tokens": 800},
            "usable with limits: arguments are cut after 3,200 characters",
            {"output_limit": 800, "max_tokens": 800},
        ),
        (
            {"window": 20_000},
            "usable with limits: the context is 20,000 tokens, not 32,000",
            {"context_tokens": 20_000},
        ),
        (
            {"window": 4_096, "truncates": True},
            "not usable: the context is 3,300 tokens, not 32,000; Anker needs 6,000",
            {"context_tokens": 3_300},
        ),
        (
            {"usage": False, "streams": False, "calls": "faulty"},
            "usable with limits: replies are not streamed; faulty tool calls",
            {},
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_verdict_and_facts_follow_from_the_flaws(server, flaws, verdict, facts) -> None:
    server.reset(FlawedModel(**flaws))
    checked = await check(server)
    assert checked.verdict.text == verdict
    assert facts.items() <= checked.verdict.facts.items()


async def test_refused_pictures_of_a_profile_with_vision_are_a_limit(server) -> None:
    server.reset(FlawedModel(sees=None))
    checked = await check(server, vision=True)
    assert checked.verdict.text == "usable with limits: it refuses pictures, but its profile says vision = true"
    assert checked.verdict.facts["vision"] is False


async def test_wrong_key_ends_the_check_without_showing_the_key(server) -> None:
    checked = await check(server, key="sk-wrong-0123456789abcdef")
    assert list(checked.findings) == ["connection"]
    assert checked.verdict.text.startswith("not usable: ")
    assert "refused the API key" in checked.verdict.text
    assert "sk-wrong" not in repr(checked)


async def test_unknown_model_ends_the_check_with_the_reason_of_the_server(server) -> None:
    checked = await check(server, model="other-model")
    assert list(checked.findings) == ["connection"]
    assert "does not know the model other-model" in checked.verdict.text
    assert "The model does not exist" in checked.verdict.text


async def test_page_instead_of_an_api_names_the_setting(server) -> None:
    server.reset(lambda _: Raw(pieces=[b"<!doctype html><p>Welcome</p>"], content_type="text/html"))
    checked = await check(server)
    assert list(checked.findings) == ["connection"]
    assert "Check API_BASE" in checked.verdict.text


async def test_hanging_server_ends_the_check_in_time(server) -> None:
    server.reset(lambda _: Raw(pieces=[], hang=True))
    async with asyncio.timeout(10):
        checked = await check(server, seconds=2)
    assert not checked.verdict.usable
    assert "no reply within" in checked.verdict.text
    assert "still loading" in checked.findings["connection"].advice


async def test_slow_server_is_reported_and_ends_in_time(server) -> None:
    server.reset(FlawedModel(delay=0.25))
    async with asyncio.timeout(20):
        checked = await check(server, seconds=8)
    assert checked.findings["streaming"].level == "warning"
    assert "tokens/s" in checked.findings["streaming"].text
    assert "slow, " in checked.verdict.text


async def test_server_that_takes_one_request_at_a_time_passes_every_probe(server) -> None:
    good, calls = FlawedModel(delay=0.002), list[Asked]()

    def script(asked: Asked) -> Answer:
        if any(not other.answered_at and not other.disconnected.is_set() for other in calls):
            return refusal("One request at a time", status=429)
        calls.append(asked)
        return good(asked)

    server.reset(script)
    checked = await check(server, seconds=60)
    assert checked.of_level("warning", "problem") == []


async def test_rate_limit_for_long_prompts_is_not_taken_for_the_window(server) -> None:
    good = FlawedModel()

    def script(asked: Asked) -> Answer:
        is_long = len(asked.raw) > 60_000
        return refusal("Limit 15000 tokens per minute", status=429) if is_long else good(asked)

    server.reset(script)
    checked = await check(server, seconds=8)
    assert checked.verdict.text == "usable with limits: the context was tested only up to 7,750 tokens"
    assert "Limit 15000 tokens per minute" in checked.findings["context"].text
    assert "context_tokens" not in checked.verdict.facts


async def test_key_that_the_model_repeats_is_not_shown(server) -> None:
    good = FlawedModel()
    server.reset(lambda asked: Reply(text=f"My key is {KEY}.") if asked.tools else good(asked))
    checked = await check(server)
    assert checked.findings["tool calls"].text == "the model made no call; it wrote “My key is [key].”"
    assert KEY not in repr(checked)


async def test_thoughts_in_the_text_are_reported(server) -> None:
    good = FlawedModel(calls="text")

    def script(asked: Asked) -> Answer:
        answer = good(asked)
        is_call = isinstance(answer, Reply) and "<tool_call>" in answer.text
        return replace(answer, text=f"<think>I need the tool.</think>{answer.text}") if is_call else answer

    server.reset(script)
    checked = await check(server)
    assert checked.findings["reasoning"].text == "thoughts are in the text; Anker hides them"


async def test_failing_probe_does_not_end_the_others(server) -> None:
    good = FlawedModel()

    def script(asked: Asked) -> Answer:
        if b"image_url" in asked.raw:
            return refusal("Rate limit reached", status=429)
        return Reply(hang_after=0) if "write_file" in asked.tools else good(asked)

    server.reset(script)
    checked = await check(server, seconds=6)
    assert checked.findings["vision"].text == "not tested: Rate limit reached"
    assert checked.findings["long arguments"].text == "no reply in time"
    assert checked.of_level("ok") == [
        *("connection", "streaming", "tool calls", "tool results", "parallel calls", "history", "prompt caching"),
        "context",
    ]
    assert checked.verdict.text == "usable with limits: long arguments not tested; vision not tested"


class Command:
    """The command in an empty folder, with the scripted server as the model of the settings."""

    def __init__(self, folder: Path, server: ScriptedOpenAI, monkeypatch, capsys) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self._monkeypatch.chdir(folder)
        self.set(API_KEY=KEY, API_BASE=server.url, MODEL_NAME="test-model", MODEL_CONTEXT_TOKENS="32000")

    def set(self, **settings: str) -> None:
        for name, value in settings.items():
            self._monkeypatch.setenv(name, value)

    def run(self, *arguments: str) -> tuple[int, list[str]]:
        """Return the exit code and the lines of the output and of the errors."""
        code = main(arguments)
        captured = self._capsys.readouterr()
        assert KEY not in captured.out + captured.err
        return code, [*captured.out.splitlines(), *captured.err.splitlines()]


@pytest.fixture
def command(tmp_path: Path, server: ScriptedOpenAI, monkeypatch, capsys) -> Command:
    return Command(tmp_path, server, monkeypatch, capsys)


async def test_process_prints_a_table_and_writes_nothing(server, tmp_path) -> None:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")}
    settings = {"API_KEY": KEY, "API_BASE": server.url, "MODEL_NAME": "test-model", "MODEL_CONTEXT_TOKENS": "32000"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "check-model"),
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    lines = output.decode().splitlines()
    assert process.returncode == 0, lines
    assert lines[0] == f"Checking default: test-model at {server.url}, for up to 110 s …"
    assert "ok       tool calls      native" in lines
    assert lines[-1] == "Verdict: usable"
    assert KEY not in output.decode()
    assert list(tmp_path.iterdir()) == []


def test_save_without_setting_creates_a_file_that_the_service_reads(server, command, tmp_path) -> None:
    server.reset(FlawedModel(window=20_000, only_temperature=1, sees=None))
    code, lines = command.run("--save")
    assert code == 0
    assert lines[-1] == "Set MODELS_CONFIG=models.toml to use it."
    assert tomllib.loads((tmp_path / "models.toml").read_text()) == {
        "models": {
            "default": {
                "model": "test-model",
                "base_url": server.url,
                "api_key_env": "API_KEY",
                "temperature": "none",
                "parallel_calls": True,
                "vision": False,
                "context_tokens": 20_000,
            }
        }
    }
    command.set(API_BASE="http://127.0.0.1:9", MODELS_CONFIG="models.toml")
    code, lines = command.run("default")
    assert (code, lines[-1]) == (0, "Verdict: usable")


CONFIG = """\
# Our models.
default = "cheap"

[models.cheap]  # for drafts
model = "other-model"
api_key_env = "CHEAP_KEY"

[models.good]
model = "test-model"  # the best one
base_url = "URL"
api_key_env = "GOOD_KEY"
context_tokens = 32_000
vision = true

[models.good.prices]
prompt = 1.5
completion = 6.0
"""


def test_save_updates_only_the_profile_and_keeps_comments(server, command, tmp_path) -> None:
    server.reset(FlawedModel(sees=None))
    path = tmp_path / "my.toml"
    path.write_text(before := CONFIG.replace("URL", server.url))
    path.chmod(0o600)
    command.set(MODELS_CONFIG="my.toml", GOOD_KEY=KEY, CHEAP_KEY="sk-cheap-0123456789", API_KEY="sk-other-0123456789")
    code, lines = command.run("good", "--save")
    assert code == 0
    assert lines[-1].endswith("profile good: parallel_calls = true, vision = false, context_tokens = 32000.")
    after = path.read_text()
    changed = [line for line in before.splitlines() if line not in after.splitlines()]
    assert changed == ["context_tokens = 32_000", "vision = true"]
    assert tomllib.loads(after)["models"]["good"] == {
        "model": "test-model",
        "base_url": server.url,
        "api_key_env": "GOOD_KEY",
        "context_tokens": 32_000,
        "vision": False,
        "parallel_calls": True,
        "prices": {"prompt": 1.5, "completion": 6.0},
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_saved_window_leaves_room_for_a_reply(server, command, tmp_path) -> None:
    server.reset(FlawedModel(window=8_000))
    command.set(MAX_TOKENS="6000")
    assert command.run("--save")[0] == 0
    saved = tomllib.loads((tmp_path / "models.toml").read_text())["models"]["default"]
    assert (saved["context_tokens"], saved["max_tokens"]) == (7_700, 1_925)
    command.set(MODELS_CONFIG="models.toml")
    assert command.run()[1][-1] == "Verdict: usable"


def test_file_that_cannot_be_written_is_named_in_one_line(server, command, tmp_path) -> None:
    (tmp_path / "models.toml").mkdir()
    code, lines = command.run("--save")
    assert code == 1
    assert lines[-1] == "MODELS_CONFIG: models.toml: is a directory"


def test_unusable_model_exits_with_1_and_saves_nothing(server, command, tmp_path) -> None:
    server.reset(FlawedModel(calls="none"))
    code, lines = command.run("--save")
    assert code == 1
    assert lines[-2:] == [
        "Verdict: not usable: it makes no tool calls",
        "Nothing is saved, because the model is not usable.",
    ]
    assert list(tmp_path.iterdir()) == []


def test_wrong_key_of_a_profile_names_its_keys_in_the_file(server, command, tmp_path) -> None:
    (tmp_path / "my.toml").write_text(CONFIG.replace("URL", server.url))
    command.set(MODELS_CONFIG="my.toml", GOOD_KEY="sk-wrong-0123456789", CHEAP_KEY="sk-cheap-0123456789")
    code, lines = command.run("good")
    assert code == 1
    assert "api_key_env" in lines[-1]
    assert "sk-wrong" not in "".join(lines)


def test_unknown_profile_names_the_known_ones_in_one_line(command) -> None:
    assert command.run("fast") == (1, ["PROFILE: unknown; the models are default"])
