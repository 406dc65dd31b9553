"""Every example of docs/extending.md works when its blocks are applied to a copy of the service."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S))
BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```", re.M | re.S)

MAX_FILES = {
    "A tool": 1,
    "A toolkit": 2,
    "A model provider": 2,
    "A sandbox provider": 2,
    "A search engine": 2,
    "An event type": 2,
    "An endpoint with a service": 5,
}
"""Maximum number of files to edit for an extension, tests and documents apart."""

PRELUDE = """
import asyncio, contextlib, json, os, sys
import httpx
from app.main import create_app
from app.settings import Settings
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.scripted_llm import ScriptedLLM, calls, completes_step, creates_plan, says

assert sys.modules["app"].__file__ is None or os.getcwd() in sys.modules["app"].__file__
API = "/api/v1/sessions"


@contextlib.asynccontextmanager
async def opened(settings=None, **overrides):
    overrides.setdefault("sandboxes", MemorySandboxProvider())
    app = create_app(Settings(_env_file=None, data_dir="data", log_level="ERROR", **settings or {}), **overrides)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            yield client, app


async def events_of(client, message):
    session = (await client.put(API)).json()["data"]["session_id"]
    await client.post(f"{API}/{session}/chat", json={"message": message})
    return (await client.get(f"{API}/{session}")).json()["data"]["events"]


async def called(client):
    tools = [e["data"] for e in await events_of(client, "go") if e["event"] == "tool"]
    return next(tool for tool in tools if tool["status"] == "called")


def model_calling(name, arguments):
    return ScriptedLLM([creates_plan("a"), calls((name, arguments)), completes_step(), says("ready")])
"""

CHECKS = {
    "A tool": """
async def check():
    sandboxes = MemorySandboxProvider()
    model = ScriptedLLM([
        creates_plan("a"),
        calls(("file_write", {"file": "a.txt", "content": "one one two"})),
        calls(("file_count", {"file": "a.txt", "text": "one"})),
        completes_step(),
        says("ready"),
    ])
    async with opened(model=model, sandboxes=sandboxes) as (client, _):
        tools = [e["data"] for e in await events_of(client, "go") if e["event"] == "tool"]
        assert tools[-1]["function"] == "file_count" and tools[-1]["result"]["data"]["count"] == 2, tools
""",
    "A toolkit": """
async def check():
    async with opened(model=model_calling("clock_now", {})) as (client, _):
        tool = await called(client)
        assert tool["name"] == "clock" and tool["result"]["success"], tool
        document = (await client.get("/openapi.json")).text
        assert '"message","clock","mcp"' in document
""",
    "A model provider": """
async def check():
    async with opened({"llm_provider": "echo"}) as (client, app):
        assert "an echo of the user" in app.state.service.description
        messages = [e["data"]["content"] for e in await events_of(client, "hello") if e["event"] == "message"]
        assert messages[1].startswith("Echo: ") and "hello" in messages[1], messages
""",
    "A sandbox provider": """
async def check():
    settings = {"sandbox_provider": "spread", "sandbox_address": "http://127.0.0.1:9,http://127.0.0.1:9"}
    async with opened(settings, sandboxes=None) as (client, app):
        assert "spread over 2 addresses" in app.state.service.description
        ready = await client.get("/ready")
        assert ready.status_code == 503 and "sandbox: " in ready.json()["msg"], ready.text
""",
    "A search engine": """
from app.infrastructure.search import wikipedia


async def serve(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    body = json.dumps(["cats", ["Cat"], ["An animal"], ["http://wiki/Cat"]]).encode()
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def check():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wikipedia.URL = "http://127.0.0.1:%d/" % server.sockets[0].getsockname()[1]
    model = model_calling("info_search_web", {"query": "cats"})
    async with server, opened({"search_provider": "wikipedia"}, model=model) as (client, _):
        tool = await called(client)
        hit = {"title": "Cat", "link": "http://wiki/Cat", "snippet": "An animal"}
        assert tool["result"]["data"]["results"] == [hit], tool
""",
    "An event type": """
from app.domain.models.event import ProgressEvent
from tests.support.api_harness import ApiHarness


async def check():
    harness = ApiHarness()
    session = await harness.create_session()
    await harness.commit_events(session, ProgressEvent(percent=40))
    [event] = await harness.list_events(session)
    assert event["event"] == "progress" and event["data"]["percent"] == 40, event
    [frame] = await harness.send_message(session)
    assert frame.event == "progress" and frame.data == event["data"]
    await harness.close()
    async with opened(model=ScriptedLLM()) as (client, _):
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        assert schemas["ProgressData"]["properties"]["percent"]["maximum"] == 100
        assert {"ProgressItem", "ProgressFrame"} <= set(schemas)
""",
    "An endpoint with a service": """
async def check():
    async with opened(model=ScriptedLLM([creates_plan(message="hi")])) as (client, _):
        session = (await client.put(API)).json()["data"]["session_id"]
        await client.post(f"{API}/{session}/chat", json={"message": "hello"})
        count = await client.get(f"{API}/{session}/count")
        events = (await client.get(f"{API}/{session}")).json()["data"]["events"]
        assert count.json()["data"] == {"events": len(events)} and events, count.text
        assert (await client.get(f"{API}/unknown/count")).status_code == 404
        document = (await client.get("/openapi.json")).json()
        assert "EventCount" in document["components"]["schemas"]
""",
}


def apply_blocks(section: str, copy: Path) -> set[str]:
    """Apply the blocks of a section to `copy`. Return the paths of the files that it adds or changes."""
    edited: set[str] = set()
    for kind, block in BLOCK.findall(SECTIONS[section]):
        first, _, text = block.partition("\n")
        path = first.removeprefix("# ").removeprefix("+++ ")
        edited.add(path)
        if kind == "python":
            assert not (copy / path).exists(), f"{path} exists already"
            (copy / path).write_text(text)
            continue
        lines = text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        source = (copy / path).read_text()
        assert source.count(before) == 1, f"{path} does not contain exactly once:\n{before}"
        (copy / path).write_text(source.replace(before, after))
    return edited


def test_every_section_of_the_document_has_a_check() -> None:
    assert set(SECTIONS) == set(CHECKS) == set(MAX_FILES)


@pytest.mark.parametrize("section", CHECKS)
def test_example_works_in_a_copy_of_the_service(section: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    edited = apply_blocks(section, tmp_path)
    assert len(edited) <= MAX_FILES[section]
    script = f"{PRELUDE}{CHECKS[section]}\nasyncio.run(check())\n"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), *sorted(edited)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ruff.returncode == 0, ruff.stdout
