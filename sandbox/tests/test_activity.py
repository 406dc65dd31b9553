"""Tracking of use, and the end of an unused sandbox."""

import asyncio
import os
import time

import httpx
import pytest
import websockets

from sandbox.activity import Activity
from sandbox.tests.real import Service


@pytest.fixture
def service(tmp_path):
    services = []

    def start(**env):
        services.append(Service(tmp_path, ANKER_SANDBOX=f"test-{os.getpid()}-{time.monotonic_ns()}", **env))
        return services[-1]

    yield start
    for one in services:
        one.stop()


def test_idle_time_starts_after_last_use_and_is_zero_during_use():
    now = 100.0
    activity = Activity(lambda: now)
    now = 103.0
    assert activity.idle_seconds == 3
    with activity.use():
        now = 110.0
        assert activity.idle_seconds == 0
        with activity.use():
            now = 112.0
        assert activity.idle_seconds == 0
        now = 113.0
    assert activity.idle_seconds == 0
    now = 114.5
    assert activity.idle_seconds == 1.5


async def test_status_request_does_not_count_as_use_but_others_do(box):
    async def idle():
        return (await box.client.get("/api/v1/status")).json()["data"]["idle_seconds"]

    first = await idle()
    await asyncio.sleep(0.05)
    assert await idle() >= first + 0.04
    await box.client.get("/api/v1/status", headers={"Authorization": ""})
    await box.client.post("/api/v1/shell/exec", headers={"Authorization": ""}, json={})
    assert await idle() >= first + 0.04
    used = time.monotonic()
    await box.run("true")
    assert await idle() <= time.monotonic() - used


async def test_request_of_viewer_does_not_count_as_use(box):
    await box.run("true")
    before = (await box.client.get("/api/v1/status")).json()["data"]["idle_seconds"]
    viewer = {"X-Anker-Viewer": "1"}
    watched = await box.client.post("/api/v1/shell/watch", headers=viewer, json={"id": "a", "seconds": 0})
    read = await box.client.post("/api/v1/file/read", headers=viewer, json={"file": "/etc/hostname"})
    assert (watched.status_code, read.status_code) == (200, 200)
    assert (await box.client.get("/api/v1/status")).json()["data"]["idle_seconds"] >= before


def test_unused_sandbox_exits_cleanly(service):
    one = service(SANDBOX_IDLE_SECONDS="1.2")
    used = time.monotonic()
    one.run("sleep 100 &")
    while one.process.poll() is None and time.monotonic() < used + 30:
        try:
            one.client.get("/status", timeout=1)  # the status request does not keep it alive
        except httpx.HTTPError:
            break
    assert one.process.wait(30) == 0
    assert time.monotonic() - used > 1.2


async def test_open_request_and_open_websocket_prevent_idle_exit(service, tmp_path):
    one = service(SANDBOX_IDLE_SECONDS="1.5", SANDBOX_EXEC_SECONDS="30")
    began = time.monotonic()
    # One request with a command that takes longer than the limit.
    assert (await asyncio.to_thread(one.run, "sleep 3; echo done"))["output"] == "done\n"
    assert time.monotonic() - began > 2.9
    # A WebSocket counts as use, both during its handshake and while it is open.
    url = f"ws://{one.address}/cdp/devtools/browser/none"
    with pytest.raises(websockets.InvalidStatus):
        await websockets.connect(url, additional_headers=one.headers, proxy=None)
    assert one.process.poll() is None
    assert await asyncio.to_thread(one.process.wait, 30) == 0


@pytest.mark.parametrize("value", ["", "0"])
def test_sandbox_without_idle_limit_stays(service, value):
    one = service(SANDBOX_IDLE_SECONDS=value)
    one.run("true")
    assert one.run("sleep 0.1; echo still here", id="b")["output"] == "still here\n"
