"""Model profiles, from the configuration file to the requests that two model servers receive."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from app.main import create_app
from app.settings import Settings, UnusableSetting
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.scripted_openai import Answer, Asked, Call, Raw, ScriptedOpenAI, Status, agent_script
from tests.support.api_harness import API

CONFIG = """\
default = "fast"
planner = "{planner}"

[models.fast]
model = "model-f"
base_url = "{fast}"
api_key_env = "FAST_KEY"
prices = {{ prompt = 1_000_000, cached = 0, completion = 100_000 }}

[models.slow]
model = "model-s"
base_url = "{slow}"
max_tokens = 700
temperature = "none"
"""


def thinking_script(thought: str) -> Any:
    """Return the usual script, for a model that thinks `thought` before it completes a step."""
    usual = agent_script(steps=1)

    def answer(asked: Asked) -> Answer:
        if asked.kind != "executing" or "The step is done." in asked.raw.decode():
            return usual(asked)
        arguments = '{"success":true,"result":"The step is done."}'
        call = {
            "index": 0,
            "id": "c1",
            "type": "function",
            "function": {"name": "complete_step", "arguments": arguments},
        }
        chunks = [
            {"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]},
        ]
        return Raw(pieces=[*(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks), b"data: [DONE]\n\n"])

    return answer


@pytest.fixture
def fast() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(agent_script(steps=1, calls=[Call("shell_view", {"id": "main"})])) as server:
        yield server


@pytest.fixture
def slow() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(agent_script(steps=1)) as server:
        yield server


@asynccontextmanager
async def service(tmp_path: Path, config: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "models.toml").write_text(config)
    chosen = Settings(
        data_dir=tmp_path / "data",
        models_config=str(tmp_path / "models.toml"),
        log_level="WARNING",
        **settings,
    )
    app = create_app(chosen, sandboxes=MemorySandboxProvider())
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            yield client


async def send(client: httpx.AsyncClient, session_id: str, **body: str) -> dict[str, Any]:
    """Send a message and return the data of the session's last event, once the run has ended."""
    await client.post(f"{API}/{session_id}/chat", json=body)
    session = (await client.get(f"{API}/{session_id}")).json()["data"]
    assert session["status"] == "completed"
    return session["events"][-1]["data"]


async def create(client: httpx.AsyncClient, **body: str) -> str:
    return (await client.put(API, json=body)).json()["data"]["session_id"]


def kinds(server: ScriptedOpenAI) -> list[str]:
    found = [asked.kind for asked in server.asked]
    server.asked.clear()
    return found


async def test_session_switches_models_and_one_model_plans_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: ScriptedOpenAI, slow: ScriptedOpenAI
) -> None:
    monkeypatch.setenv("FAST_KEY", "sk-secret")
    config = CONFIG.format(fast=fast.url, slow=slow.url, planner="slow")
    async with service(tmp_path, config) as client:
        session_id = await create(client)
        await send(client, session_id, message="one")
        first = fast.asked[0]
        assert (first.body["model"], first.headers["authorization"]) == ("model-f", "Bearer sk-secret")
        assert (first.body["temperature"], first.body["max_tokens"]) == (0.7, 2_000)
        planning = slow.asked[0]
        assert (planning.body["model"], planning.headers["authorization"]) == ("model-s", "Bearer none")
        assert (planning.body["max_tokens"], "temperature" in planning.body) == (700, False)
        assert (kinds(fast), kinds(slow)) == (["executing", "executing"], ["planning", "final"])
        await send(client, session_id, message="two", model="slow")
        assert (kinds(fast), kinds(slow)) == ([], ["planning", "executing", "final"])
        await send(client, session_id, message="three", model="fast")
        assert (kinds(fast), kinds(slow)) == (["executing", "executing"], ["planning", "final"])


async def test_usage_and_metrics_are_those_of_each_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: ScriptedOpenAI, slow: ScriptedOpenAI
) -> None:
    monkeypatch.setenv("FAST_KEY", "sk-secret")
    config = CONFIG.format(fast=fast.url, slow=slow.url, planner="fast")
    async with service(tmp_path, config, planner_model="slow") as client:
        session_id = await create(client)
        done = await send(client, session_id, message="one")
        # Each reply reports 11 prompt tokens, 5 of them cached, and 7 completion tokens.
        tokens = {"prompt_tokens": 44, "cached_tokens": 20, "reasoning_tokens": 0, "completion_tokens": 28}
        assert done["usage"] == {"model_calls": 4, **tokens, "cost": pytest.approx(2 * (6 + 0.7))}
        await send(client, session_id, message="two", model="slow")
        session = (await client.get(f"{API}/{session_id}")).json()["data"]
        assert (session["model"], session["usage"]["model_calls"]) == ("slow", 7)
        assert session["usage"]["cost"] == pytest.approx(2 * (6 + 0.7))
        metrics = (await client.get("/metrics")).text.splitlines()
        assert 'anker_model_calls_total{profile="fast"} 2.0' in metrics
        assert 'anker_model_calls_total{profile="slow"} 5.0' in metrics
        assert 'anker_model_tokens_total{kind="cached",profile="fast"} 10.0' in metrics
        assert 'anker_model_first_token_seconds_count{profile="slow"} 5.0' in metrics
        assert any(line.startswith('anker_model_cost_total{profile="fast"} 13.') for line in metrics)
        assert not any(line.startswith('anker_model_cost_total{profile="slow"}') for line in metrics)


async def test_thoughts_of_a_model_never_reach_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: ScriptedOpenAI, slow: ScriptedOpenAI
) -> None:
    monkeypatch.setenv("FAST_KEY", "sk-secret")
    fast.script = thinking_script("A thought of fast.")
    config = CONFIG.format(fast=fast.url, slow=slow.url, planner="slow")
    async with service(tmp_path, config) as client:
        session_id = await create(client)
        await send(client, session_id, message="one")
        await send(client, session_id, message="two")
        assert b"A thought of fast." in fast.asked[-1].raw
        await send(client, session_id, message="three", model="slow")
        assert [asked.kind for asked in slow.asked].count("executing") == 1
        assert not any(b"A thought of fast." in asked.raw for asked in slow.asked)


async def test_title_of_the_user_stays(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, log_level="WARNING"), sandboxes=MemorySandboxProvider())
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            session_id = await create(client, title="Mine")
            for message in ("hello", "hi"):
                await send(client, session_id, message=message)
            session = (await client.get(f"{API}/{session_id}")).json()["data"]
            titles = [event["data"]["title"] for event in session["events"] if event["event"] == "title"]
            assert (session["title"], titles) == ("Mine", ["Mine", "Mine"])


async def test_refusal_and_errors_of_a_model_stay_with_its_profile(tmp_path: Path, fast: ScriptedOpenAI) -> None:
    usual = agent_script(steps=1)

    def refuse_temperature(asked: Asked) -> Answer:
        refused = asked.body["model"] == "picky" and "temperature" in asked.body
        body = {"error": {"message": "temperature: only 1 is allowed for this model", "param": "temperature"}}
        return Status(status=400, body=body) if refused else usual(asked)

    fast.script = refuse_temperature
    profiles = (f'[models.{name}]\nmodel = "{name}"\nbase_url = "{fast.url}"\n' for name in ("picky", "other"))
    async with service(tmp_path, "".join(profiles)) as client:
        session_id = await create(client)
        await send(client, session_id, message="one")
        assert ["temperature" in asked.body for asked in fast.asked] == [True, False, False, False]
        fast.asked.clear()
        await send(client, session_id, message="two", model="other")
        assert all("temperature" in asked.body for asked in fast.asked)
        metrics = (await client.get("/metrics")).text
        assert 'anker_model_errors_total{kind="parameter",profile="picky"} 1.0' in metrics
        assert 'profile="other"} 3.0' in metrics
        assert 'anker_model_errors_total{kind="parameter",profile="other"} 0.0' in metrics


async def test_session_whose_model_was_removed_goes_on_with_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: ScriptedOpenAI, slow: ScriptedOpenAI
) -> None:
    monkeypatch.setenv("FAST_KEY", "sk-secret")
    config = CONFIG.format(fast=fast.url, slow=slow.url, planner="fast")
    async with service(tmp_path, config) as client:
        session_id = await create(client, model="slow")
        await send(client, session_id, message="one")
        assert kinds(slow) == ["executing"]
    async with service(tmp_path, config.partition("[models.slow]")[0]) as client:
        assert (await client.get(f"{API}/{session_id}")).json()["data"]["model"] == "fast"
        fast.asked.clear()
        await send(client, session_id, message="two")
        assert (kinds(fast), kinds(slow)) == (["planning", "executing", "executing", "final"], [])


async def test_models_are_listed_without_keys_and_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: ScriptedOpenAI, slow: ScriptedOpenAI
) -> None:
    monkeypatch.setenv("FAST_KEY", "sk-secret")
    async with service(tmp_path, CONFIG.format(fast=fast.url, slow=slow.url, planner="fast")) as client:
        answer = await client.get("/api/v1/models")
        models = [
            {"name": "fast", "model": "model-f", "default": True, "vision": False, "context_tokens": 128_000},
            {"name": "slow", "model": "model-s", "default": False, "vision": False, "context_tokens": 128_000},
        ]
        assert answer.json()["data"] == {"models": models}


async def test_demo_model_is_a_profile_and_counted(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, log_level="WARNING"), sandboxes=MemorySandboxProvider())
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            [model] = (await client.get("/api/v1/models")).json()["data"]["models"]
            assert (model["name"], model["model"], model["default"]) == ("default", "demo", True)
            done = await send(client, await create(client, model="default"), message="hello")
            assert done["usage"]["model_calls"] == 1
            assert 'anker_model_calls_total{profile="default"} 1.0' in (await client.get("/metrics")).text


async def test_models_config_with_another_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableSetting, match=r"^MODELS_CONFIG: LLM_PROVIDER=demo does not use it$"):
        async with service(tmp_path, "", llm_provider="demo"):
            pass
