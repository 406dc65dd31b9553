"""HTTP behavior of the service, and the program as a real process."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from sandbox.tests.real import ROOT, Service
from tests.support.eventually import wait_until


async def test_every_request_requires_token(box):
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic test-token"}):
        for path in ("/api/v1/status", "/nowhere"):
            response = await box.client.get(path, headers=headers)
            assert response.status_code == 401
            assert response.json() == {"success": False, "message": "no or wrong token", "data": None}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/api/v1/shell/exec", b"{", 400, "not valid JSON"),
        ("POST", "/api/v1/shell/exec", b"[]", 400, ""),
        ("POST", "/api/v1/shell/exec", b'{"id": "a"}', 400, "command"),
        ("POST", "/api/v1/shell/exec", b'{"id": 1, "command": "x"}', 400, "id"),
        ("POST", "/api/v1/shell/exec", b'{"id": "a", "exec_dir": "", "command": "x", "more": 1}', 400, "more"),
        ("POST", "/api/v1/file/read", b'{"file": "\\ud800"}', 400, ""),
        ("POST", "/api/v1/nothing", b"{}", 404, "no such route"),
        ("GET", "/api/v1/shell/exec", b"", 405, "not allowed"),
        ("GET", "/docs", b"", 404, "no such route"),
        ("POST", "/cdp/json/version", b"{}", 405, "not allowed"),
        ("POST", "/api/v1/file/upload", b"", 400, ""),
        ("GET", "/api/v1/file/download", b"", 400, "path"),
    ],
)
async def test_bad_request_returns_envelope(box, method, path, body, status, word):
    response = await box.client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer["success"] is False and answer["data"] is None and word in answer["message"] and answer["message"]


async def test_body_limit_applies_to_declared_and_actual_length(box):
    big = b'{"file": "f", "content": "' + b"x" * (33 * 1024 * 1024)
    response = await box.client.post("/api/v1/file/write", content=big)
    assert (response.status_code, response.json()["message"]) == (413, "the body is larger than 32 MiB")

    async def pieces():
        for _ in range(33):
            yield b"x" * 1024 * 1024

    response = await box.client.post("/api/v1/file/write", content=pieces())
    assert (response.status_code, response.json()["success"]) == (413, False)


async def test_internal_error_returns_envelope_without_traceback(box, monkeypatch):
    from sandbox.files import reading

    def broken(*_):
        raise ZeroDivisionError("inner words")

    monkeypatch.setattr(reading, "read", broken)
    response = await box.client.post("/api/v1/file/read", json={"file": "x"})
    assert response.status_code == 500 and "inner words" not in response.text
    assert response.json()["success"] is False


async def test_status_reports_each_part(make_box, box):
    bare = await make_box(chromium="/nowhere/chromium")
    data = (await bare.client.get("/api/v1/status")).json()["data"]
    assert data["shell"] == {"ready": True, "reason": ""}
    assert data["browser"] == data["desktop"] == {"ready": False, "reason": "not installed"}
    assert data["idle_seconds"] >= 0


async def test_missing_browser_returns_409_with_reason(make_box, box):
    for options, word in (({"chromium": "/nowhere/chromium"}, "not installed"), ({"browser": "off"}, "switched off")):
        bare = await make_box(**options)
        for method, path in (("GET", "/cdp/json/version"), ("GET", "/cdp/json"), ("POST", "/api/v1/browser/restart")):
            response = await bare.client.request(method, path)
            message = f"there is no browser in this sandbox: {word}"
            assert (response.status_code, response.json()["message"]) == (409, message)


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path, ANKER_SANDBOX=f"test-{os.getpid()}-{time.monotonic_ns()}")
    yield service
    service.stop()


LONG = f"711.{os.getpid()}"
"""Sleep time of the processes of this test run, which tells them apart from other runs on this machine."""

DAEMONS = (
    f"sleep {LONG} & setsid sleep {LONG} & (setsid sh -c 'trap \"\" TERM HUP; sleep {LONG}; sleep {LONG}' &) ; "
    f"sleep {LONG}"
)


def sleepers() -> int:
    count = 0
    for process in psutil.process_iter(["cmdline", "status"]):
        ours = (process.info["cmdline"] or [])[:2] == ["sleep", LONG]
        count += ours and process.info["status"] != psutil.STATUS_ZOMBIE
    return count


def begun(count: int) -> None:
    """Wait until that many sleepers run. A background job may start after its command has ended."""
    wait_until(lambda: sleepers() == count)


def test_sigterm_ends_all_processes_quickly(service, tmp_path):
    service.run(DAEMONS)
    begun(4)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(30) == 0
    assert time.monotonic() - began < 3
    assert sleepers() == 0 and list((tmp_path / "out").iterdir()) == []


def test_end_of_lifeline_ends_all_processes(service):
    service.run(DAEMONS)
    begun(4)
    os.close(service.lifeline)
    service.lifeline = -1
    assert service.process.wait(30) == 0
    assert sleepers() == 0


def test_sigkill_leaves_no_process(service):
    service.run(DAEMONS)
    begun(4)
    victims = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", LONG]]
    assert len(victims) == 4
    service.process.kill()
    service.process.wait()
    assert psutil.wait_procs(victims, timeout=30)[1] == []


def test_orphans_are_adopted_and_reaped(service):
    service.run(f"(sleep 0.1 &) ; (setsid sleep {LONG} &)")
    begun(1)
    parents = [p.ppid() for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", LONG]]
    assert parents == [service.process.pid]
    assert service.client.post("/shell/kill", json={"id": "a"}).json()["success"]
    assert sleepers() == 0
    gone = psutil.wait_procs(psutil.Process(service.process.pid).children(recursive=True), timeout=0)[1]
    deadline = time.monotonic() + 30
    while len(gone) > 2 and time.monotonic() < deadline:
        _, gone = psutil.wait_procs(gone, timeout=0.2)
    assert sorted(process.name() for process in gone) == ["bash", "sh"]  # a shell and the guardian


def test_shell_inherits_no_descriptor_or_variable_of_service(service):
    data = service.run("ls -l /proc/$$/fd; env; echo done")
    assert "done" in data["output"] and "SANDBOX_" not in data["output"].replace("ANKER_SANDBOX", "")
    assert "socket:" not in data["output"] and "ANKER_SANDBOX=test-" in data["output"]


def test_waiting_request_is_answered_at_shutdown(service):
    service.run(f"sleep {LONG}")
    with httpx.Client(timeout=10) as client:
        import threading

        answers = []
        headers = dict(service.client.headers)
        url = f"{service.client.base_url}shell/wait"

        def ask():
            answers.append(client.post(url, json={"id": "a", "seconds": 60}, headers=headers).json())

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: service.status()["idle_seconds"] == 0)  # the request has arrived
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(30)
        thread.join(30)
    assert not thread.is_alive() and answers[0]["data"]["status"] == "completed"


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"SANDBOX_TOKEN": ""}, "SANDBOX_TOKEN"),
        ({"SANDBOX_TOKEN": "t", "SANDBOX_PORT": "x"}, "SANDBOX_PORT"),
        ({"SANDBOX_TOKEN": "t", "SANDBOX_EXEC_SECONDS": "-1"}, "SANDBOX_EXEC_SECONDS"),
        ({}, "SANDBOX_TOKEN"),
        ({"SANDBOX_TOKEN": "t", "SANDBOX_HOME": "/dev/null/x"}, "SANDBOX_HOME"),
    ],
)
def test_unusable_setting_fails_start_with_one_line(env, name):
    base = {key: value for key, value in os.environ.items() if not key.startswith("SANDBOX_")}
    done = subprocess.run(
        [sys.executable, "-m", "sandbox"], cwd=ROOT, env=base | env, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith(name)
    assert "Traceback" not in json.dumps(done.stderr)
