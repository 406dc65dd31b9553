"""Canaries of the service's own secrets, planted wherever text comes in: none is seen where text goes out.

The service is the real one, with SQLite and a local sandbox. Browser, search engine and model are scripted.
"""

import secrets
import sqlite3
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.errors import BrowserFailure
from app.domain.external.search import SearchHit
from app.domain.models.browser import PageView
from app.main import create_app
from app.settings import Settings
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowser, MemoryBrowsers
from tests.fakes.scripted_openai import Answer, Asked, Call, Reply, ScriptedOpenAI, Status
from tests.support.canaries import REVEAL, all_forms, found_in, hidden

API = "/api/v1/sessions"


@dataclass
class Planted:
    """The canaries: the service's secrets, and secrets of a user."""

    own: dict[str, str]
    foreign: list[str]

    @classmethod
    def new(cls) -> "Planted":
        names = ("api_key", "google_search_api_key", "sandbox_token", "token")
        own = {name: f"{secrets.token_urlsafe(12)}-{secrets.token_urlsafe(24)}" for name in names}
        return cls(own, [f"sk-live-{secrets.token_hex(16)}", f"c4n4ry{secrets.token_hex(16)}", "AKIAIOSFODNN7EXAMPLE"])

    @property
    def text(self) -> str:
        """All forms of one of the service's secrets, the others as they are and in Base64, and the user's ones."""
        others = [form for value in self.own.values() for form in (value, b64encode(value.encode()).decode())]
        return "\n".join([all_forms([self.own["api_key"]]), *others, *self.foreign])


class CanaryModel:
    """A script that plants the canaries in everything that a model writes and in everything that its tools return."""

    def __init__(self, planted: Planted) -> None:
        key = planted.own["api_key"]
        program = (
            f"{REVEAL}import sys, time, os\ntext = reveal({hidden(planted.text)!r})\nkey = reveal({hidden(key)!r})\n"
            "open('found.txt', 'w').write(text)\nopen(key + '.canary', 'w').write(key)\nprint(text, flush=True)\n"
            "print('begin', key[:19], end='', sep='', flush=True)\ntime.sleep(0.3)\nprint(key[19:], flush=True)\n"
        )
        self._text = planted.text
        self._calls = [
            Call("file_write", {"file": "plant.py", "content": program}),
            Call("shell_exec", {"id": "main", "exec_dir": "~", "command": "python3 plant.py"}),
            Call("file_read", {"file": "found.txt"}),
            Call("file_find_by_name", {"path": "~", "glob": "*.canary"}),
            Call("file_find_in_content", {"file": "found.txt", "regex": ".*"}),
            Call("file_read", {"file": f"/nowhere/{key}"}),
            Call("browser_view", {}),
            Call("browser_navigate", {"url": f"http://127.0.0.1/{key}"}),
            Call("browser_view", {}),
            Call("info_search_web", {"query": key}),
            Call("message_notify_user", {"text": self._text}),
            Call("no_such_function", {"text": self._text}),
            Call("shell_view", self._text),
            Call("shell_view", {"id": f"none-{key}"}),
        ]

    def __call__(self, asked: Asked) -> Answer:
        match asked.kind:
            case "planning" if any("fail now" in str(message["content"]) for message in asked.messages):
                return Status(status=400, body={"error": {"message": self._text}})
            case "planning":
                steps = [{"id": "1", "description": self._text}]
                plan = {"title": self._text[:150], "message": self._text, "goal": self._text, "steps": steps}
                return Reply(calls=[Call("create_plan", plan)], size=3)
            case "executing" if self._calls:
                return Reply(calls=[self._calls.pop(0)], text=self._text)
            case "executing":
                return Reply(calls=[Call("complete_step", {"success": True, "result": self._text})])
            case _:
                return Reply(text=f"{self._text}\nThat is all.", size=7)


class PlantedBrowsers(MemoryBrowsers):
    """Browsers with one page, which fail after it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    async def open(self, session_id: str) -> MemoryBrowser:
        browser = await super().open(session_id)
        if browser.calls:
            browser.failure = BrowserFailure(self._text)
        browser.pages = [PageView(url=f"http://x/?{self._text[:60]}", title=self._text[:60], text=self._text)]
        return browser


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted.new()


@pytest.fixture(scope="module")
def model(planted: Planted) -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(CanaryModel(planted)) as server:
        yield server


@asynccontextmanager
async def open_service(planted: Planted, model: ScriptedOpenAI, data: Path) -> AsyncIterator[httpx.AsyncClient]:
    own = planted.own
    settings = Settings(
        _env_file=None,
        data_dir=data,
        api_base=model.url,
        api_key=own["api_key"],
        google_search_api_key=own["google_search_api_key"],
        sandbox_token=own["sandbox_token"],
        api_tokens=f"ann:{own['token']}",
        sandbox_provider="local",
        log_level="DEBUG",
    )  # type: ignore[call-arg]
    engine = FakeSearch([SearchHit(title=planted.text[:99], link="http://x", snippet=planted.text)])
    app = create_app(settings, browsers=PlantedBrowsers(planted.text), engine=engine)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {own['token']}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            yield client


async def _bad_requests(client: httpx.AsyncClient, session: str, planted: Planted) -> AsyncIterator[bytes]:
    """Send requests with the canaries in every place, and yield the responses' bodies."""
    for value in (*planted.own.values(), *planted.foreign):
        bodies: list[tuple[str, str, Any]] = [
            ("POST", f"{API}/{session}/chat", {"message": "x", "model": value}),
            ("POST", f"{API}/{session}/chat", {value: value, "timestamp": value}),
            ("POST", f"{API}/{session}/file", {"file": f"/nowhere/{value}"}),
            ("POST", f"{API}/{session}/file", {"file": f"{value}\0"}),
            ("POST", f"{API}/{session}/shell", {"session_id": value}),
            ("PATCH", f"{API}/{session}/title", {"title": value}),
            ("PUT", API, {"title": value, "model": value}),
            ("GET", f"{API}/{value}?cursor={value}", None),
            ("GET", f"{API}?cursor={value}", None),
            ("GET", f"{API}/{session}/pictures/{value}", None),
            ("POST", f"{API}/{session}/control", {"action": value}),
            (value, f"/{value}", None),
        ]
        for method, path, body in bodies:
            # A client names its requests as it likes, to find them in the log: only our own secrets are masked there.
            request_id = planted.own["api_key"] if value in planted.foreign else value
            response = await client.request(method, path, json=body, headers={"X-Request-ID": request_id})
            yield response.content
        response = await client.get(API, headers={"Authorization": f"Bearer {value}x", "Cookie": value})
        yield response.content


def _stored(data: Path) -> bytes:
    """Return the bytes of the store's files, and of every value in its tables."""
    parts = [path.read_bytes() for path in data.glob("anker.db*")]
    with sqlite3.connect(data / "anker.db") as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f"SELECT * FROM {table}"):
                parts += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    connection.close()
    return b"\n".join(parts)


async def test_canaries_are_not_in_anything_that_goes_out(
    planted: Planted, model: ScriptedOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out: dict[str, bytes] = {}
    async with open_service(planted, model, tmp_path) as client:
        session = (await client.put(API, json={"title": planted.own["token"]})).json()["data"]["session_id"]
        for number, message in enumerate((planted.text, f"fail now {planted.text}")):
            body = {"message": message, "stream": True}
            headers = {"Idempotency-Key": f"{planted.own['api_key']}{number}"}
            response = await client.post(f"{API}/{session}/chat", json=body, headers=headers, timeout=120)
            out[f"stream {number}"] = response.content
        for name, response in {
            "history": await client.get(f"{API}/{session}"),
            "list": await client.get(API),
            "shell": await client.post(f"{API}/{session}/shell", json={"session_id": "main"}),
            "file": await client.post(f"{API}/{session}/file", json={"file": "found.txt"}),
        }.items():
            assert response.status_code == 200, name
            out[name] = response.content
        failures = [body async for body in _bad_requests(client, session, planted)]
        out["failures"] = b"\n".join(failures)
        out["metrics"] = (await client.get("/metrics")).content
    out["log"] = capsys.readouterr().err.encode()
    out["store"] = _stored(tmp_path)
    out["model"] = b"\n".join(asked.raw for asked in model.asked)

    leaks = {place: found for place, data in out.items() if (found := found_in(data, planted.own.values()))}
    assert leaks == {}
    for place in ("stream 0", "stream 1", "history", "list", "shell", "file", "store", "model", "failures"):
        assert b"***" in out[place], place
    for place in ("log", "metrics"):
        assert [value for value in planted.foreign if value.encode() in out[place]] == [], place
    for place in ("stream 0", "history", "shell", "file"):
        assert all(value.encode() in out[place] for value in planted.foreign), place
    assert b"message_delta" in out["stream 0"]
    assert out["stream 0"].count(b'"status":"called"') >= 12
    assert b'"success":true' in out["stream 0"]
    assert b"event: error" in out["stream 1"]
