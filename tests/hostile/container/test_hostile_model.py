"""A hostile model makes every malicious call that it can: no policy breaks, and each run ends in a defined state."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.domain.services.tools.registry import EXECUTING
from tests.fakes.scripted_openai import Answer, Asked, Call, Reply
from tests.hostile.container.attacks import FORBIDDEN, HARMLESS, REACHED, UNKNOWN_CALLS
from tests.integration.docker_sessions.conftest import DockerService, complete, completed_calls, plan, shell
from tests.support.invariants import check_log
from tests.support.sse import SseFrame

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

HOST_SECRET = "secret-of-a-server-on-the-host"
VICTIM_SECRET = "secret-of-the-other-session"
PREPARE = (
    "ln -s /run/anker link-to-state; ln -s /proc/1/environ link-to-first; head -c 5000 /dev/zero | tr '\\0' a >letters"
)
RUN_SECONDS = 150
REPORTED_IN_OUTPUT = ("shell_exec", "browser_console_exec")
"""Functions whose call succeeds when the command or script fails; the output says so."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(HOST_SECRET.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Battlefield:
    """A session with a hostile model, another session beside it, and a server on the host."""

    service: DockerService
    attacker: str
    victim: str
    places: dict[str, str]
    """Values for the placeholders in the attacks."""

    async def run(self, session: str, *replies: Reply) -> list[SseFrame]:
        turns = iter(replies)

        def script(asked: Asked) -> Answer:
            if asked.kind == "planning":
                return plan()
            return next(turns, complete()) if asked.kind == "executing" else Reply(text="Done.")

        self.service.model.reset(script)
        stream = await self.service.client.send_message(session, "Go on")
        return await stream.read_all(seconds=RUN_SECONDS)

    async def attack(self, calls: list[Call]) -> list[SseFrame]:
        """Let the hostile model make `calls`; check that the run ended and that nothing secret came out."""
        frames = await self.run(self.attacker, Reply(calls=calls))
        assert frames[-1].event in ("done", "wait", "error"), frames[-1]
        seen = json.dumps([frame.data for frame in frames])
        for secret in (HOST_SECRET, VICTIM_SECRET):
            assert secret not in seen
        for frame in frames:
            if frame.event == "tool" and frame.data["status"] == "called":
                output = json.dumps([frame.data["result"], str(frame.data["content"])])
                assert REACHED not in output, frame.data["args"]
        return frames

    def call(self, name: str, arguments: dict[str, Any]) -> Call:
        filled = {key: self._fill(value) for key, value in arguments.items()}
        return Call(name, filled)

    def _fill(self, value: Any) -> Any:
        for name, place in self.places.items():
            value = value.replace(f"{{{name}}}", place) if isinstance(value, str) else value
        return value

    async def check(self) -> None:
        """Check that the service, the attacker's sandbox and the victim's go on."""
        assert (await self.service.client.http.get("/ready")).status_code == 200
        frames = await self.run(self.attacker, shell("echo al''ive", "check"))
        assert "alive" in json.dumps(completed_calls(frames, "shell_exec")[-1]["result"]), frames[-3:]
        frames = await self.run(self.victim, shell("cat secret/index.html"))
        assert VICTIM_SECRET in json.dumps(completed_calls(frames, "shell_exec")[-1]["result"])
        for session in (self.attacker, self.victim):
            check_log((await self.service.client.get_session(session))["events"])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def battlefield(service: DockerService) -> AsyncIterator[Battlefield]:
    attacker, victim = await service.client.create_session(), await service.client.create_session()
    with ThreadingHTTPServer(("0.0.0.0", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        field = Battlefield(service, attacker, victim, {"port": str(server.server_port)})
        serve = (
            f"mkdir secret; echo {VICTIM_SECRET} >secret/index.html; python3 -m http.server 7000 -d secret >log 2>&1 &"
        )
        await field.run(victim, shell(serve))
        await field.run(attacker, shell(PREPARE))
        (network,) = (await service.container(victim))["NetworkSettings"]["Networks"].values()
        field.places |= {"victim": network["IPAddress"], "gateway": network["Gateway"]}
        async with httpx.AsyncClient() as host:
            served = await host.get(f"http://{network['Gateway']}:{server.server_port}/")
        assert served.text == HOST_SECRET
        yield field
        server.shutdown()
        thread.join()
    for session in (attacker, victim):
        await service.delete(session)


async def test_every_function_has_hostile_calls() -> None:
    assert set(FORBIDDEN) | set(HARMLESS) == set(EXECUTING)


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_forbidden_calls_fail_and_the_run_ends(battlefield: Battlefield, name: str) -> None:
    frames = await battlefield.attack([battlefield.call(name, each) for each in FORBIDDEN[name]])
    called = completed_calls(frames, name)
    if name not in REPORTED_IN_OUTPUT:
        assert [each["args"] for each in called if each["result"]["success"]] == []


@pytest.mark.parametrize("name", HARMLESS)
async def test_ruinous_calls_leave_everything_usable(battlefield: Battlefield, name: str) -> None:
    await battlefield.attack([battlefield.call(name, each) for each in HARMLESS[name]])
    if name == "shell_exec":  # its processes may still be as many as a sandbox may have
        await battlefield.attack([Call("shell_kill_process", {"id": "ruin"})])
    await battlefield.check()


async def test_calls_that_do_not_exist_are_told_to_the_model_and_the_run_ends(battlefield: Battlefield) -> None:
    frames = await battlefield.attack([Call(name, arguments) for name, arguments in UNKNOWN_CALLS])
    assert not [each["function"] for each in completed_calls(frames) if each["result"]["success"]]
    assert frames[-1].event == "done"
    await battlefield.check()
