"""The HTTP client of a sandbox: what it sends, and what it makes of every kind of response."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.models.sandbox import FileImage, PartStatus, ShellState
from app.infrastructure.sandbox.client import api_client, http_sandbox
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox, SandboxInstance
from app.infrastructure.sandbox.client.running_sandbox import RunningSandbox
from app.infrastructure.sandbox.client.shell_ids import encode_id, encode_scope
from app.infrastructure.sandbox.remote import RemoteSandboxes

SHELL = {"session_id": "x", "status": "completed", "returncode": 0, "output": "hi\n"}


class Scripted:
    """A transport that returns the same response to every request and records the requests."""

    def __init__(self, data: object = None, *, status: int = 200, body: object = None) -> None:
        self.status = status
        self.body = {"success": True, "message": "", "data": data} if body is None else body
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return httpx.Response(self.status, content=content)

    def last_request(self) -> tuple[str, dict[str, object]]:
        request = self.requests[-1]
        return request.url.path, json.loads(request.content)

    def sandbox(self, scope: str = "") -> HttpSandbox:
        api = SandboxApiClient("http://box:49171", "t0ken", transport=httpx.MockTransport(self))
        return HttpSandbox(SandboxInstance(api=api, id="i1"), scope=scope)


async def test_shell_calls_send_their_path_body_and_token() -> None:
    box = Scripted(SHELL)
    await box.sandbox().shell_exec("main", "/home/ubuntu", "ls -l")
    assert box.last_request() == ("/api/v1/shell/exec", {"id": "main", "exec_dir": "/home/ubuntu", "command": "ls -l"})
    assert box.requests[0].headers["authorization"] == "Bearer t0ken"
    assert box.requests[0].headers["host"] == "box:49171"
    await box.sandbox().shell_wait("main", None)
    assert box.last_request() == ("/api/v1/shell/wait", {"id": "main"})
    await box.sandbox().shell_wait("main", 7)
    assert box.last_request() == ("/api/v1/shell/wait", {"id": "main", "seconds": 7})
    await box.sandbox().shell_write("main", "yes", press_enter=True)
    assert box.last_request() == ("/api/v1/shell/write", {"id": "main", "input": "yes", "press_enter": True})
    await box.sandbox().kill_all()
    assert box.last_request() == ("/api/v1/shell/kill_all", {"prefix": ""})


async def test_shell_response_becomes_a_shell_state() -> None:
    console = [{"ps1": "$", "command": "ls", "output": "a\n"}]
    box = Scripted({**SHELL, "returncode": None, "truncated": True, "output_file": "/o/1", "console": console})
    state = await box.sandbox().shell_exec("main", "", "ls")
    assert (state.returncode, state.truncated, state.output_file) == (None, True, "/o/1")
    assert (state.console[0].ps1, state.console[0].command, state.console[0].output) == ("$", "ls", "a\n")


async def test_scope_prefixes_the_shell_ids_of_a_shared_sandbox() -> None:
    box = Scripted(SHELL)
    sandbox = box.sandbox(scope="s1")
    assert (await sandbox.shell_exec("my shell", "", "ls")).shell_id == "my shell"
    assert box.last_request()[1]["id"] == "s1.my:20shell"
    await sandbox.kill_all()
    assert box.last_request()[1] == {"prefix": "s1."}


async def test_failure_in_a_shared_sandbox_names_no_shell_of_other_sessions() -> None:
    message = "no such shell: s1.main; the shells there are: s2.secret"
    box = Scripted(status=404, body={"success": False, "message": message, "data": None})
    with pytest.raises(SandboxFailure) as caught:
        await box.sandbox(scope="s1").shell_view("main")
    assert "main" in str(caught.value) and "s1" not in str(caught.value) and "secret" not in str(caught.value)
    box = Scripted(status=409, body={"success": False, "message": "shell s1.main still runs `x`", "data": None})
    with pytest.raises(SandboxFailure, match=r"^shell main still runs `x`$"):
        await box.sandbox(scope="s1").shell_exec("main", "", "ls")


def test_different_names_get_different_ids_and_scopes() -> None:
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
async def test_refusal_raises_sandbox_failure_with_message_and_status(status: int) -> None:
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
async def test_malformed_response_raises_sandbox_unavailable(status: int, body: object) -> None:
    with pytest.raises(SandboxUnavailable):
        await Scripted(status=status, body=body).sandbox().shell_view("main")


@pytest.mark.parametrize(
    "data",
    [{}, {"matches": ["a"], "line_numbers": []}, {"matches": [1], "line_numbers": [1]}, {"matches": "a"}],
)
async def test_malformed_file_matches_raise_sandbox_unavailable(data: object) -> None:
    with pytest.raises(SandboxUnavailable):
        await Scripted(data).sandbox().file_search("a", "b", sudo=False)


async def test_text_with_half_a_surrogate_pair_is_refused_before_sending() -> None:
    box = Scripted({"bytes_written": 1})
    with pytest.raises(SandboxFailure, match="not valid Unicode"):
        await box.sandbox().file_write("a", "half: \ud83d", append=False, sudo=False)
    assert box.requests == []


async def test_optional_fields_of_file_calls_are_sent_only_when_given() -> None:
    box = Scripted({"content": "x", "note": "n", "encoding": "gbk", "encoding_is_guess": True})
    read = await box.sandbox().file_read("a", start=None, end=None, sudo=False)
    assert (read.note, read.encoding, read.encoding_is_guess) == ("n", "gbk", True)
    assert not {"encoding", "start_char", "end_char"} & set(box.last_request()[1])
    await box.sandbox().file_read("a", start=1, end=2, start_char=3, end_char=4, encoding="gbk", sudo=False)
    sent = box.last_request()[1]
    assert (sent["start_char"], sent["end_char"], sent["encoding"]) == (3, 4, "gbk")


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[tuple[HttpSandbox, list[asyncio.StreamWriter]]]:
    """Run a server that reads a request and calls `serve`; yield its sandbox and the connections that it accepted."""
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
    api = SandboxApiClient(f"http://127.0.0.1:{port}", "t")
    try:
        yield HttpSandbox(SandboxInstance(api=api, id="i1")), seen
    finally:
        await api.aclose()
        server.close()


async def test_broken_connection_raises_and_the_request_is_not_repeated() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    for serve in (hang_up, say_nothing):
        async with listening(serve) as (sandbox, connections):
            with pytest.raises(SandboxUnavailable, match="broke"):
                await sandbox.shell_exec("main", "", "rm -rf build")
            assert len(connections) == 1


IMAGE = {"media_type": "image/jpeg", "base64": "/9j/", "original_width": 9, "original_height": 5}


async def test_picture_is_requested_with_its_longest_side() -> None:
    box = Scripted(IMAGE)
    found = await box.sandbox().file_image("a.png", max_side=64)
    assert box.last_request() == ("/api/v1/file/image", {"file": "a.png", "max_side": 64})
    assert found == FileImage(file="a.png", jpeg=b"\xff\xd8\xff", original_width=9, original_height=5)


@pytest.mark.parametrize(
    "change",
    [
        {"base64": None},
        {"base64": "no base64!"},
        {"base64": "\u00e9"},
        {"base64": "AAAA" * 200_000},
        {"media_type": "text/html"},
        {"file": 3},
        {"original_width": "9"},
    ],
)
async def test_malformed_picture_raises_sandbox_unavailable(change: dict[str, object]) -> None:
    with pytest.raises(SandboxUnavailable):
        await Scripted({**IMAGE, **change}).sandbox().file_image("a.png", max_side=64)


async def test_closed_port_raises_sandbox_unavailable() -> None:
    api = SandboxApiClient("http://127.0.0.1:1", "t")
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await HttpSandbox(SandboxInstance(api=api, id="i1")).shell_view("main")
    await api.aclose()


async def test_slow_response_is_given_up_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_sandbox, "MARGIN_SECONDS", 0.05)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Single bytes keep the read timeout of a socket from expiring.
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with listening(drip) as (sandbox, _):
        with pytest.raises(SandboxUnavailable, match=r"did not answer within 0\.05 s"):
            await sandbox.shell_view("main")


async def test_response_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "MAX_RESPONSE_BYTES", 1 << 20)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async with listening(flood) as (sandbox, _):
        with pytest.raises(SandboxUnavailable, match="more than 1 MiB"):
            await sandbox.shell_view("main")


async def test_cancelled_call_closes_its_connection() -> None:
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


async def test_concurrent_calls_get_their_own_responses() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        return httpx.Response(200, json={"success": True, "data": {**SHELL, "output": asked["command"]}})

    api = SandboxApiClient("http://box", "t", transport=httpx.MockTransport(echo))
    sandbox = HttpSandbox(SandboxInstance(api=api, id="i1"))
    states = await asyncio.gather(*(sandbox.shell_exec(f"s{n}", "", f"c{n}") for n in range(50)))
    assert states == [ShellState(shell_id=f"s{n}", status="completed", returncode=0, output=f"c{n}") for n in range(50)]


async def test_instance_is_not_idle_during_a_call() -> None:
    now = 0.0
    during: list[float] = []

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal now
        now += 100
        during.append(running.idle_seconds)
        return httpx.Response(200, json={"success": True, "data": SHELL})

    api = SandboxApiClient("http://box", "t", transport=httpx.MockTransport(respond))
    running = RunningSandbox(api, instance_id="i1", exec_seconds=1, clock=lambda: now)
    await running.view.shell_view("main")
    assert during == [0.0] and running.idle_seconds == 0.0
    now += 5
    assert running.idle_seconds == 5


async def test_browser_endpoint_is_below_the_address_and_hides_its_token() -> None:
    endpoint = Scripted().sandbox().browser
    assert (endpoint.url, endpoint.token, endpoint.home) == ("http://box:49171/cdp", "t0ken", "/home/ubuntu")
    assert "t0ken" not in repr(endpoint)
    other = HttpSandbox(SandboxInstance(api=SandboxApiClient("http://box:49171/", "t"), id="c1", home="/w"))
    assert (other.instance_id, other.browser.url, other.browser.home) == ("c1", "http://box:49171/cdp", "/w")


async def test_status_returns_the_parts_and_does_not_count_as_use() -> None:
    now = 0.0
    parts = {"shell": {"ready": True, "reason": ""}, "browser": {"ready": False, "reason": "it starts"}}
    box = Scripted({**parts, "idle_seconds": 3.5})
    api = SandboxApiClient("http://box:49171", "t", transport=httpx.MockTransport(box))
    running = RunningSandbox(api, instance_id="i1", exec_seconds=1, clock=lambda: now)
    now = 9
    assert await running.view.status() == {
        "shell": PartStatus(ready=True),
        "browser": PartStatus(ready=False, reason="it starts"),
    }
    assert (box.requests[-1].method, box.requests[-1].url.path) == ("GET", "/api/v1/status")
    assert running.idle_seconds == 9
    await running.view.restart_browser()
    assert box.last_request() == ("/api/v1/browser/restart", {}) and running.idle_seconds == 0


@pytest.mark.parametrize(
    "data", [{"shell": {"ready": "yes"}}, {"shell": {}}, {"shell": {"ready": False, "reason": ["x"]}}]
)
async def test_malformed_status_raises_sandbox_unavailable(data: object) -> None:
    with pytest.raises(SandboxUnavailable, match="malformed"):
        await Scripted(data).sandbox().status()


async def test_desktop_at_a_closed_port_raises_sandbox_unavailable() -> None:
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await HttpSandbox(SandboxInstance(api=SandboxApiClient("http://127.0.0.1:1", "t"), id="i1")).desktop()


async def test_remote_check_returns_why_the_sandbox_cannot_be_used() -> None:
    provider = RemoteSandboxes("http://box", "t", transport=httpx.MockTransport(Scripted({})))
    assert await provider.check() is None
    await provider.close()
    refusing = Scripted(status=401, body={"success": False, "message": "no or wrong token", "data": None})
    provider = RemoteSandboxes("http://box", "t", transport=httpx.MockTransport(refusing))
    assert "SANDBOX_TOKEN" in (await provider.check() or "")
    provider = RemoteSandboxes("http://127.0.0.1:1", "t")
    assert "cannot be reached" in (await provider.check() or "")
    await provider.close()


async def test_remote_destroy_kills_the_sessions_shells_only() -> None:
    box = Scripted({"killed": []})
    provider = RemoteSandboxes("http://box", "t", transport=httpx.MockTransport(box))
    provider.warm("s1")
    await provider.destroy("s1")
    assert box.last_request() == ("/api/v1/shell/kill_all", {"prefix": "s1."})
    box.status, box.body = 500, {"success": False, "message": "a fault", "data": None}
    await provider.destroy("s1")
