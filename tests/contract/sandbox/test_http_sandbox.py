"""The sandbox over HTTP: what goes over the wire, and what becomes of every kind of answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.models.sandbox import PartStatus, ShellState
from app.infrastructure.sandbox.activity import Activity
from app.infrastructure.sandbox.client import api_client as link
from app.infrastructure.sandbox.client import http_sandbox as client
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.client.shell_ids import encode_id, encode_scope
from app.infrastructure.sandbox.remote import RemoteSandboxes

SHELL = {"session_id": "x", "status": "completed", "returncode": 0, "output": "hi\n"}


class Scripted:
    """A sandbox that answers every request alike and keeps what it was asked."""

    def __init__(self, data: object = None, *, status: int = 200, body: object = None) -> None:
        self.status = status
        self.body = {"success": True, "message": "", "data": data} if body is None else body
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return httpx.Response(self.status, content=content)

    def sent(self) -> tuple[str, dict[str, object]]:
        request = self.requests[-1]
        return request.url.path, json.loads(request.content)

    def sandbox(self, scope: str = "") -> HttpSandbox:
        return HttpSandbox(
            SandboxApiClient("http://box:8080", "t0ken", transport=httpx.MockTransport(self)), scope=scope
        )


async def test_every_request_goes_to_the_contracts_path_with_the_token() -> None:
    box = Scripted(SHELL)
    await box.sandbox().shell_exec("main", "/home/ubuntu", "ls -l")
    assert box.sent() == ("/api/v1/shell/exec", {"id": "main", "exec_dir": "/home/ubuntu", "command": "ls -l"})
    assert box.requests[0].headers["authorization"] == "Bearer t0ken"
    assert box.requests[0].headers["host"] == "box:8080"
    await box.sandbox().shell_wait("main", None)
    assert box.sent() == ("/api/v1/shell/wait", {"id": "main"})
    await box.sandbox().shell_wait("main", 7)
    assert box.sent() == ("/api/v1/shell/wait", {"id": "main", "seconds": 7})
    await box.sandbox().shell_write("main", "yes", press_enter=True)
    assert box.sent() == ("/api/v1/shell/write", {"id": "main", "input": "yes", "press_enter": True})
    await box.sandbox().kill_all()
    assert box.sent() == ("/api/v1/shell/kill_all", {"prefix": ""})


async def test_an_answer_becomes_the_domains_value() -> None:
    console = [{"ps1": "$", "command": "ls", "output": "a\n"}]
    box = Scripted({**SHELL, "returncode": None, "truncated": True, "output_file": "/o/1", "console": console})
    state = await box.sandbox().shell_exec("main", "", "ls")
    assert (state.returncode, state.truncated, state.output_file) == (None, True, "/o/1")
    assert (state.console[0].ps1, state.console[0].command, state.console[0].output) == ("$", "ls", "a\n")


async def test_shells_of_a_shared_sandbox_are_kept_apart_by_session() -> None:
    box = Scripted(SHELL)
    sandbox = box.sandbox(scope="s1")
    assert (await sandbox.shell_exec("my shell", "", "ls")).shell_id == "my shell"
    assert box.sent()[1]["id"] == "s1.my:20shell"
    await sandbox.kill_all()
    assert box.sent()[1] == {"prefix": "s1."}


async def test_a_failure_in_a_shared_sandbox_never_names_other_sessions_shells() -> None:
    words = "no such shell: s1.main; the shells there are: s2.secret"
    box = Scripted(status=404, body={"success": False, "message": words, "data": None})
    with pytest.raises(SandboxFailure) as caught:
        await box.sandbox(scope="s1").shell_view("main")
    assert "main" in str(caught.value) and "s1" not in str(caught.value) and "secret" not in str(caught.value)
    box = Scripted(status=409, body={"success": False, "message": "shell s1.main still runs `x`", "data": None})
    with pytest.raises(SandboxFailure, match=r"^shell main still runs `x`$"):
        await box.sandbox(scope="s1").shell_exec("main", "", "ls")


def test_different_names_never_become_the_same_id() -> None:
    names = ["", ":", "::", "a b", "a:20b", "a%20b", "é", ":C3:A9", "x" * 64, "x" * 65, "x" * 66, "日" * 30, "\ud800"]
    names.append(encode_id("x" * 65))
    ids = [encode_id(name) for name in names]
    assert len(set(ids)) == len(names)
    scopes = [encode_scope(name) for name in [*names, "a.b", "a", "-a", "../../etc", "."]]
    assert len(set(scopes)) == len(scopes)
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-")
    assert all(1 <= len(each) <= 64 and set(each) <= allowed for each in ids + scopes)
    assert all("." not in each and ":" not in each for each in scopes)
    assert max(map(len, scopes)) + 1 + max(map(len, ids)) <= 128


@pytest.mark.parametrize("status", [400, 404, 409, 413, 500])
async def test_a_refusal_keeps_its_words_and_its_status(status: int) -> None:
    box = Scripted(status=status, body={"success": False, "message": "no such file: a", "data": None})
    with pytest.raises(SandboxFailure, match=r"^no such file: a$") as caught:
        await box.sandbox().file_read("a", start=None, end=None, sudo=False)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (502, b"<html>Bad Gateway"),
        (200, []),
        (200, {"success": True, "message": "", "data": None}),
        (200, {"success": True, "message": "", "data": []}),
        (200, {"success": True, "message": "", "data": {}}),
        (200, {"success": "yes", "message": "", "data": SHELL}),
        (200, {"success": True, "data": {**SHELL, "status": "asleep"}}),
        (200, {"success": True, "data": {**SHELL, "status": ["running"]}}),
        (200, {"success": True, "data": {**SHELL, "output": 5}}),
        (200, {"success": True, "data": {**SHELL, "returncode": "0"}}),
        (200, {"success": True, "data": {**SHELL, "console": "x"}}),
        (200, {"success": True, "data": {**SHELL, "console": ["x"]}}),
        (500, {"success": False, "message": None}),
        (401, {"success": False, "message": "no or wrong token", "data": None}),
    ],
)
async def test_an_answer_that_makes_no_sense_means_that_the_sandbox_is_unusable(status: int, body: object) -> None:
    with pytest.raises(SandboxUnavailable):
        await Scripted(status=status, body=body).sandbox().shell_view("main")


@pytest.mark.parametrize(
    "data",
    [{}, {"matches": ["a"], "line_numbers": []}, {"matches": [1], "line_numbers": [1]}, {"matches": "a"}],
)
async def test_file_answers_are_looked_at_as_closely(data: object) -> None:
    with pytest.raises(SandboxUnavailable):
        await Scripted(data).sandbox().file_search("a", "b", sudo=False)


async def test_text_that_is_not_unicode_is_refused_in_words_the_model_can_read() -> None:
    box = Scripted({"bytes_written": 1})
    with pytest.raises(SandboxFailure, match="not valid Unicode"):
        await box.sandbox().file_write("a", "half: \ud83d", append=False, sudo=False)
    assert box.requests == []


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[tuple[HttpSandbox, list[asyncio.StreamWriter]]]:
    """A server that reads a request and goes on with `serve`; the sandbox at it and the connections it got."""
    seen: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = SandboxApiClient(f"http://127.0.0.1:{port}", "t")
    try:
        yield HttpSandbox(wire), seen
    finally:
        await wire.aclose()
        server.close()


async def test_a_connection_that_breaks_is_told_and_the_request_never_sent_again() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    for serve in (hang_up, say_nothing):
        async with listening(serve) as (sandbox, connections):
            with pytest.raises(SandboxUnavailable, match="broke"):
                await sandbox.shell_exec("main", "", "rm -rf build")
            assert len(connections) == 1


async def test_an_address_where_nothing_listens_is_unavailable() -> None:
    wire = SandboxApiClient("http://127.0.0.1:1", "t")
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await HttpSandbox(wire).shell_view("main")
    await wire.aclose()


async def test_an_answer_that_does_not_come_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MARGIN_SECONDS", 0.05)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Single bytes keep a socket's own time-out from ever striking.
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with listening(drip) as (sandbox, _):
        with pytest.raises(SandboxUnavailable, match=r"did not answer within 0\.05 s"):
            await sandbox.shell_view("main")


async def test_an_answer_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_ANSWER_BYTES", 1 << 20)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async with listening(flood) as (sandbox, _):
        with pytest.raises(SandboxUnavailable, match="more than 1 MiB"):
            await sandbox.shell_view("main")


async def test_a_cancelled_call_closes_its_connection_and_leaves_the_link_usable() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        while await reader.read(1000):
            pass
        gone.set()

    async with listening(wait_for_the_end) as (sandbox, connections):
        call = asyncio.create_task(sandbox.shell_exec("main", "", "sleep 60"))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(30):
            await gone.wait()
        assert len(connections) == 1


async def test_many_calls_at_once_get_their_own_answers() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        return httpx.Response(200, json={"success": True, "data": {**SHELL, "output": asked["command"]}})

    sandbox = HttpSandbox(SandboxApiClient("http://box", "t", transport=httpx.MockTransport(echo)))
    states = await asyncio.gather(*(sandbox.shell_exec(f"s{n}", "", f"c{n}") for n in range(50)))
    assert states == [ShellState(shell_id=f"s{n}", status="completed", returncode=0, output=f"c{n}") for n in range(50)]


async def test_a_call_under_way_is_activity() -> None:
    now = 0.0
    activity = Activity(lambda: now)
    during: list[float] = []

    def later(request: httpx.Request) -> httpx.Response:
        nonlocal now
        now += 100
        during.append(activity.idle_seconds)
        return httpx.Response(200, json={"success": True, "data": SHELL})

    wire = SandboxApiClient("http://box", "t", transport=httpx.MockTransport(later))
    await HttpSandbox(wire, activity=activity).shell_view("main")
    assert during == [0.0] and activity.idle_seconds == 0.0
    now += 5
    assert activity.idle_seconds == 5


async def test_the_browser_is_where_the_api_is_and_its_token_is_never_shown() -> None:
    endpoint = Scripted().sandbox().browser
    assert (endpoint.url, endpoint.token, endpoint.home) == ("http://box:8080/cdp", "t0ken", "/home/ubuntu")
    assert "t0ken" not in repr(endpoint)
    other = HttpSandbox(SandboxApiClient("http://box:8080/", "t"), instance_id="c1", home="/w")
    assert (other.instance_id, other.browser.url, other.browser.home) == ("c1", "http://box:8080/cdp", "/w")


async def test_the_status_tells_each_part_and_is_no_use_of_the_sandbox() -> None:
    entered: list[str] = []

    class Used(Activity):
        def __enter__(self) -> None:
            entered.append("used")
            super().__enter__()

    parts = {"shell": {"ready": True, "reason": ""}, "browser": {"ready": False, "reason": "it starts"}}
    box = Scripted({**parts, "idle_seconds": 3.5})
    wire = SandboxApiClient("http://box:8080", "t", transport=httpx.MockTransport(box))
    sandbox = HttpSandbox(wire, activity=Used(lambda: 0.0))
    assert await sandbox.status() == {
        "shell": PartStatus(ready=True),
        "browser": PartStatus(ready=False, reason="it starts"),
    }
    assert (box.requests[-1].method, box.requests[-1].url.path, entered) == ("GET", "/api/v1/status", [])
    await sandbox.restart_browser()
    assert (box.sent(), entered) == (("/api/v1/browser/restart", {}), ["used"])


@pytest.mark.parametrize(
    "data", [{"shell": {"ready": "yes"}}, {"shell": {}}, {"shell": {"ready": False, "reason": ["x"]}}]
)
async def test_a_status_that_makes_no_sense_is_refused(data: object) -> None:
    with pytest.raises(SandboxUnavailable, match="makes no sense"):
        await Scripted(data).sandbox().status()


async def test_a_desktop_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await HttpSandbox(SandboxApiClient("http://127.0.0.1:1", "t")).desktop()


async def test_a_remote_sandbox_tells_whether_it_answers() -> None:
    provider = RemoteSandboxes("http://box", "t", transport=httpx.MockTransport(Scripted({})))
    assert await provider.check() is None
    await provider.close()
    refusing = Scripted(status=401, body={"success": False, "message": "no or wrong token", "data": None})
    provider = RemoteSandboxes("http://box", "t", transport=httpx.MockTransport(refusing))
    assert "SANDBOX_TOKEN" in (await provider.check() or "")
    provider = RemoteSandboxes("http://127.0.0.1:1", "t")
    assert "cannot be reached" in (await provider.check() or "")
    await provider.close()


async def test_destroying_a_session_of_a_remote_sandbox_ends_its_shells_only() -> None:
    box = Scripted({"killed": []})
    provider = RemoteSandboxes("http://box", "t", transport=httpx.MockTransport(box))
    provider.warm("s1")
    await provider.destroy("s1")
    assert box.sent() == ("/api/v1/shell/kill_all", {"prefix": "s1."})
    box.status, box.body = 500, {"success": False, "message": "a fault", "data": None}
    await provider.destroy("s1")
