"""Endpoints 7 and 8: shells and files of a session's sandbox."""

import httpx
import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from tests.support.api_harness import API, ApiHarness


async def test_shell_returns_console(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    sandbox = await harness.sandboxes.acquire(session_id)
    sandbox.script("ls", "a.txt\n")
    await sandbox.shell_exec("main", "~", "ls")
    data = (await client.post(f"{API}/{session_id}/shell", json={"session_id": "main"})).json()["data"]
    console = [{"ps1": "ubuntu@sandbox:~ $", "command": "ls", "output": "a.txt\n"}]
    assert data == {"output": "a.txt\n", "session_id": "main", "console": console}


async def test_shell_without_sandbox_returns_404_and_starts_none(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    answer = await client.post(f"{API}/{await harness.create_session()}/shell", json={"session_id": "main"})
    assert answer.status_code == 404
    assert harness.sandboxes.starts == 0


async def test_file_returns_content_from_workspace(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await (await harness.sandboxes.acquire(session_id)).file_write("a.txt", "één\n", append=False, sudo=False)
    answer = await client.post(f"{API}/{session_id}/file", content='{"file": "a.txt"}')  # as `curl -d` sends it
    assert answer.json()["data"] == {"content": "één\n", "file": "/home/ubuntu/a.txt"}


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (SandboxFailure("no such file", status=404), 404),
        (SandboxFailure("busy", status=409), 409),
        (SandboxFailure("binary"), 400),
        (SandboxFailure("huge", status=413), 413),
        (SandboxFailure("no", status=401), 502),
        (SandboxFailure("broken", status=500), 502),
        (SandboxUnavailable("away", retry_after=7), 503),
    ],
)
async def test_sandbox_failure_status_is_mapped(
    harness: ApiHarness, client: httpx.AsyncClient, failure: SandboxFailure | SandboxUnavailable, status: int
) -> None:
    session_id = await harness.create_session()
    (await harness.sandboxes.acquire(session_id)).failure = failure
    for path, body in (("shell", {"session_id": "main"}), ("file", {"file": "a"})):
        answer = await client.post(f"{API}/{session_id}/{path}", json=body)
        assert answer.status_code == status
        assert answer.json() == {"code": status, "msg": str(failure), "data": None}
        assert answer.headers.get("retry-after") == ("7" if status == 503 else None)


@pytest.mark.parametrize("body", [{}, {"file": None}, {"file": ""}, {"file": 5}, {"file": "x" * 5000}, {"path": "a"}])
async def test_file_with_invalid_path_returns_400(
    harness: ApiHarness, client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    answer = await client.post(f"{API}/{await harness.create_session()}/file", json=body)
    assert answer.status_code == 400
    assert answer.json()["msg"].startswith("file: ")
