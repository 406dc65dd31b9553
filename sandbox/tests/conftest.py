"""Fixtures: the real application with real shells, called through ASGI."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from sandbox.lifeline import restore_default_signals
from sandbox.main import create_app
from sandbox.settings import Settings

TOKEN = "test-token"

PATIENCE = 600
"""Maximum number of looks, 50 ms apart. It is generous, for busy machines."""


class SandboxClient:
    """Calls one sandbox's API and unpacks the envelope."""

    def __init__(self, client: httpx.AsyncClient, home: Path) -> None:
        self.client = client
        self.home = home

    async def call(self, path: str, status: int = 200, /, **body):
        response = await self.client.post(f"/api/v1{path}", json=body)
        answer = response.json()
        assert response.status_code == status, answer
        assert set(answer) == {"success", "message", "data"}
        assert answer["success"] is (status == 200)
        return answer["data"] if status == 200 else answer["message"]

    async def run(self, command: str, id: str = "a", exec_dir: str = "", status: int = 200):
        return await self.call("/shell/exec", status, id=id, exec_dir=exec_dir, command=command)

    async def file(self, name: str, status: int = 200, /, **body):
        return await self.call(f"/file/{name}", status, **body)

    async def write(self, line: str, shows: str, id: str = "a"):
        """Write a line and return the response, with later output added until it contains `shows`."""
        data = await self.call("/shell/write", id=id, input=line, press_enter=True)
        output = data["output"]
        for _ in range(PATIENCE):
            if shows in output:
                return data | {"output": output}
            data = await self.call("/shell/wait", id=id, seconds=0.05)
            output += data["output"]
        raise AssertionError(f"{shows!r} never came: {output!r}")

    async def until(self, text: str, id: str = "a") -> None:
        """Wait in the service until the console contains `text`."""
        for _ in range(PATIENCE):
            if text in (await self.call("/shell/view", id=id))["output"]:
                return
            await self.call("/shell/wait", id=id, seconds=0.05)
        raise AssertionError(f"{text!r} never came")


@pytest.fixture
def make_box(tmp_path):
    opened = []

    async def make(**options) -> SandboxClient:
        home = tmp_path / f"home{len(opened)}"
        home.mkdir()
        defaults = {"token": TOKEN, "home": home, "output_dir": tmp_path / f"out{len(opened)}", "exec_seconds": 5}
        app = create_app(Settings(**(defaults | options)))
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://sandbox",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=30,
        )
        opened.append((app, client))
        return SandboxClient(client, home)

    make.opened = opened
    return make


@pytest.fixture(autouse=True)
def _signals():
    restore_default_signals()


@pytest.fixture
async def box(make_box) -> AsyncIterator[SandboxClient]:
    yield await make_box()
    for app, client in make_box.opened:
        await client.aclose()
        await app.state.sandbox.close()


@pytest.fixture
async def quick(make_box, box) -> SandboxClient:
    """Return a sandbox whose exec returns at once, for commands that keep running."""
    return await make_box(exec_seconds=0.05)
