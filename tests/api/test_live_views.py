"""Endpoints 7 and 8 with `Accept: text/event-stream`, and without the sandbox."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest

from app.application.services import inspect_sandbox, live_views
from app.application.services.live_views import Glance, LiveViews, PageViews
from app.domain.errors import LimitReached, SandboxUnavailable
from app.domain.models.event import ToolCalledEvent, ToolCallingEvent
from app.domain.models.tool import JsonObject, OpenCall, ToolResult
from app.infrastructure.streams.memory import MemoryFeed
from tests.fakes.memory_sandbox import HOME, PROMPT
from tests.support.api_harness import API, ApiHarness, serve
from tests.support.eventually import eventually
from tests.support.sse import SseFrame, read_frames

ACCEPT = {"Accept": "text/event-stream", "Content-Type": "application/json"}
"""Headers of the frontend of 2025-06-19."""

SHELL, FILE = {"session_id": "main"}, {"file": f"{HOME}/a.txt"}
VIEWS = [("shell", SHELL), ("file", FILE)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ABSENT_SECONDS", "STARTING_SECONDS", "FILE_SECONDS", "MAX_FILE_SECONDS"):
        monkeypatch.setattr(inspect_sandbox, name, 0.02)
    monkeypatch.setattr(live_views, "MIN_PAUSE", 0.005)
    monkeypatch.setattr(live_views, "RETRY_SECONDS", 0.02)


@asynccontextmanager
async def follow(
    client: httpx.AsyncClient, session_id: str, path: str, body: dict[str, str], **headers: str
) -> AsyncIterator[AsyncGenerator[SseFrame, None]]:
    """Open a stream as a frontend does, and yield its frames after the comment that opens it."""
    async with (
        client.stream("POST", f"{API}/{session_id}/{path}", json=body, headers={**ACCEPT, **headers}) as answer,
        asyncio.timeout(20),
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async with aclosing(read_frames(answer, comments=True)) as frames:  # type: ignore[type-var]
            assert (await anext(frames)).comment == "open"
            yield frames  # type: ignore[misc]


def console(*lines: tuple[str, str]) -> dict[str, Any]:
    rows = [{"ps1": PROMPT, "command": command, "output": output} for command, output in lines]
    output = lines[0][1] if len(lines) == 1 else "".join(f"{PROMPT} {command}\n{output}" for command, output in lines)
    return {"output": output, "session_id": "main", "console": rows}


async def store_call(
    harness: ApiHarness, session_id: str, function: str, args: JsonObject, content: JsonObject, *, success: bool = True
) -> None:
    """Store the events of a tool call."""
    call = OpenCall(id="c", toolkit=function.partition("_")[0], function=function, args=args)
    result = ToolResult(text="", success=success, content=content)
    await harness.commit_events(session_id, ToolCallingEvent.of(call), ToolCalledEvent.of(call, result))


def records(*lines: tuple[str, str]) -> JsonObject:
    return {"console": console(*lines)["console"]}


async def test_shell_stream_sends_state_at_each_change(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    async with follow(live_client, session_id, "shell", SHELL) as frames:
        first = asyncio.create_task(anext(frames))
        sandbox = await harness.sandboxes.acquire(session_id)
        sandbox.script("make", "done\n", runs=True)
        await sandbox.shell_exec("main", "~", "make")
        frame = await first
        assert (frame.event, frame.id, frame.data) == ("shell", None, console(("make", "")))
        assert frame.raw == json.dumps(console(("make", "")), separators=(",", ":")).encode()
        sandbox.write_output("main", "half\n")
        assert (await anext(frames)).data == console(("make", "half\n"))
        sandbox.release("main")
        while (frame := await anext(frames)).data != console(("make", "half\ndone\n")):
            assert frame.data == console(("make", "half\n"))
        sandbox.script("ls", "a.txt\n")
        await sandbox.shell_exec("main", "~", "ls")
        assert (await anext(frames)).data == console(("make", "half\ndone\n"), ("ls", "a.txt\n"))


async def test_file_stream_sends_state_at_each_change(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    async with follow(live_client, session_id, "file", FILE) as frames:
        first = asyncio.create_task(anext(frames))
        sandbox = await harness.sandboxes.acquire(session_id)
        await eventually(lambda: any(call.method == "file_watch" for call in sandbox.calls))
        sandbox.files[f"{HOME}/a.txt"] = "één\n"
        frame = await first
        assert (frame.event, frame.id) == ("file", None)
        assert frame.raw == f'{{"content":"één\\n","file":"{HOME}/a.txt"}}'.encode()
        sandbox.files[f"{HOME}/a.txt"] = "two\n"
        assert (await anext(frames)).data["content"] == "two\n"


async def test_stream_starts_no_sandbox_and_sends_comments(live_client: httpx.AsyncClient) -> None:
    harness = ApiHarness(heartbeat=0.02)
    session_id = await harness.create_session()
    async with serve(harness) as client:
        for path, body in VIEWS:
            async with follow(client, session_id, path, body) as frames:
                assert [(await anext(frames)).comment for _ in range(3)] == ["ping"] * 3
    assert harness.sandboxes.starts == 0
    await harness.close()


@pytest.mark.parametrize(("path", "body"), VIEWS)
async def test_stream_ends_when_session_is_deleted(
    harness: ApiHarness, live_client: httpx.AsyncClient, path: str, body: dict[str, str]
) -> None:
    session_id = await harness.create_session()
    async with follow(live_client, session_id, path, body) as frames:
        assert (await harness.client.delete(f"{API}/{session_id}")).status_code == 200
        assert [frame async for frame in frames] == []


async def test_streams_end_when_service_shuts_down(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    async with serve(harness) as client, follow(client, session_id, "shell", SHELL) as frames:
        harness.services.end_streams()
        assert [frame async for frame in frames] == []


async def test_stream_continues_with_next_sandbox(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    old = await harness.sandboxes.acquire(session_id)
    await old.shell_exec("main", "~", "one")
    async with follow(live_client, session_id, "shell", SHELL) as frames:
        assert (await anext(frames)).data == console(("one", ""))
        old.failure = SandboxUnavailable("away")
        old.write_output("main", "")  # wakes the look, whose next call fails
        del harness.sandboxes.sandboxes[session_id]
        new = await harness.sandboxes.acquire(session_id)
        await new.shell_exec("main", "~", "two")
        assert (await anext(frames)).data == console(("two", ""))


async def test_viewers_share_one_look(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    sandbox = await harness.sandboxes.acquire(session_id)
    await sandbox.shell_exec("main", "~", "one")
    async with (
        follow(live_client, session_id, "shell", SHELL) as first,
        follow(live_client, session_id, "shell", SHELL) as second,
    ):
        for frames in (first, second):
            assert (await anext(frames)).data == console(("one", ""))
        sandbox.write_output("main", "more\n")
        for frames in (first, second):
            assert (await anext(frames)).data == console(("one", "more\n"))
        assert sum(call.method == "shell_watch" for call in sandbox.calls) <= 3
    await eventually(lambda: harness.feed.subscriber_count == 0)


async def test_fourth_view_of_page_ends_its_oldest(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    sandbox = await harness.sandboxes.acquire(session_id)
    await sandbox.shell_exec("main", "~", "one")
    page = {"origin": str(live_client.base_url).rstrip("/")}
    async with AsyncExitStack() as stack:
        program = await stack.enter_async_context(follow(live_client, session_id, "shell", SHELL))
        other = await stack.enter_async_context(
            follow(live_client, session_id, "shell", SHELL, **page, **{"user-agent": "another browser"})
        )
        views = [
            await stack.enter_async_context(follow(live_client, session_id, path, body, **page))
            for path, body in (("shell", SHELL), ("file", FILE), ("shell", SHELL), ("file", FILE))
        ]
        assert [frame.data async for frame in views[0]] == [console(("one", ""))]
        for frames in (program, other, views[2]):
            assert (await anext(frames)).data == console(("one", ""))
        sandbox.write_output("main", "more\n")
        sandbox.files[f"{HOME}/a.txt"] = "text\n"
        for frames in (program, other, views[2]):
            assert (await anext(frames)).data == console(("one", "more\n"))
        for frames in (views[1], views[3]):
            assert (await anext(frames)).data["content"] == "text\n"


async def test_invalid_request_for_stream_returns_envelope(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    for path, _ in VIEWS:
        answer = await client.post(f"{API}/{session_id}/{path}", json={}, headers=ACCEPT)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)
    answer = await client.post(f"{API}/{'0' * 16}/shell", json=SHELL, headers=ACCEPT)
    assert (answer.status_code, answer.json()["data"]) == (404, None)


async def test_request_without_stream_header_returns_json(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await (await harness.sandboxes.acquire(session_id)).shell_exec("main", "~", "one")
    accept = {"Accept": "application/json, text/plain, */*"}
    answer = await client.post(f"{API}/{session_id}/shell", json=SHELL, headers=accept)
    assert answer.json() == {"code": 0, "msg": "success", "data": console(("one", ""))}


async def test_console_of_ended_sandbox_comes_from_events(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    for function, args, shown in (
        ("shell_exec", {"id": "main", "command": "old"}, [("old", "")]),
        ("shell_view", {"id": "main"}, [("cd /x", ""), ("make", "")]),
        ("shell_exec", {"id": "other", "command": "no"}, [("no", "")]),
        ("shell_exec", {"id": "main", "command": "ls"}, [("ls", "a\n")]),
        ("shell_exec", {"id": "main", "command": "ls"}, [("ls", "b\n")]),
        ("shell_exec", {"id": "main", "command": "sleep"}, [("sleep", "")]),
        ("shell_wait", {"id": "main"}, [("sleep", "slept\n")]),
    ):
        await store_call(harness, session_id, function, args, records(*shown))
    await store_call(harness, session_id, "shell_wait", {"id": "main"}, {"console": "text of an older version"})
    expected = console(("cd /x", ""), ("make", ""), ("ls", "a\n"), ("ls", "b\n"), ("sleep", "slept\n"))
    answer = await harness.client.post(f"{API}/{session_id}/shell", json=SHELL)
    assert answer.json()["data"] == expected
    async with follow(live_client, session_id, "shell", SHELL) as frames:
        assert (await anext(frames)).data == expected
    sandbox = await harness.sandboxes.acquire(session_id)  # a new one, which does not have this shell
    assert (await harness.client.post(f"{API}/{session_id}/shell", json=SHELL)).json()["data"] == expected
    await sandbox.shell_exec("main", "~", "new")
    answer = await harness.client.post(f"{API}/{session_id}/shell", json=SHELL)
    assert answer.json()["data"] == console(("new", ""))


async def test_unknown_shell_of_ended_sandbox_returns_404(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await store_call(harness, session_id, "shell_exec", {"id": "other"}, records(("no", "")))
    answer = await client.post(f"{API}/{session_id}/shell", json=SHELL)
    assert answer.status_code == 404 and "sandbox is not running" in answer.json()["msg"]


async def test_file_of_ended_sandbox_comes_from_events(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    path = f"{HOME}/a.txt"
    await store_call(harness, session_id, "file_write", {"file": "~/a.txt"}, {"content": "one", "file": path})
    await store_call(harness, session_id, "file_str_replace", {"file": "a.txt"}, {"content": "two", "file": path})
    await store_call(harness, session_id, "file_read", {"file": "a.txt"}, {"content": "[gone]"}, success=False)
    await store_call(harness, session_id, "file_read", {"file": "b.txt"}, {"content": "b", "file": f"{HOME}/b.txt"})
    async with follow(live_client, session_id, "file", FILE) as frames:
        assert (await anext(frames)).data == {"content": "two", "file": path}
    assert harness.sandboxes.starts == 0
    harness.sandboxes.refusal = SandboxUnavailable("no engine")
    for name in (path, "a.txt", "~/a.txt", "./a.txt"):
        answer = await harness.client.post(f"{API}/{session_id}/file", json={"file": name})
        assert answer.json()["data"] == {"content": "two", "file": path}
    answer = await harness.client.post(f"{API}/{session_id}/file", json={"file": "/tmp/a.txt"})
    assert answer.status_code == 503


async def test_view_of_sandbox_that_just_ended_comes_from_events(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await store_call(harness, session_id, "shell_exec", {"id": "main"}, records(("ls", "a\n")))
    ended = await harness.sandboxes.acquire(session_id)
    ended.failure = SandboxUnavailable("away")

    async def peek(_: str) -> Any:
        harness.sandboxes.sandboxes.clear()
        return ended

    harness.sandboxes.peek = peek  # type: ignore[method-assign]
    answer = await client.post(f"{API}/{session_id}/shell", json=SHELL)
    assert answer.json()["data"]["console"] == console(("ls", "a\n"))["console"]


class Counter:
    """A look that sees a new number each time it is let to."""

    def __init__(self) -> None:
        self.looks = 0
        self.may_look = asyncio.Semaphore(0)

    async def __call__(self, latest: int | None) -> Glance[int]:
        await self.may_look.acquire()
        self.looks += 1
        return Glance(view=self.looks)


async def test_slow_viewer_skips_states(harness: ApiHarness) -> None:
    session = await harness.store.get(await harness.create_session(), owner="")
    views, look = LiveViews[int](harness.feed, PageViews()), Counter()
    async with aclosing(views.follow(session, "a", look)) as states:
        look.may_look.release()
        assert await anext(states) == 1
        for _ in range(50):
            look.may_look.release()
        await eventually(lambda: look.looks == 51)
        assert await anext(states) == 51
    await eventually(lambda: harness.feed.subscriber_count == 0)


async def test_number_of_live_views_is_limited(harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_views, "MAX_VIEWS", 1)
    session = await harness.store.get(await harness.create_session(), owner="")
    views, look = LiveViews[int](MemoryFeed(), PageViews()), Counter()
    async with aclosing(views.follow(session, "a", look)) as states:
        look.may_look.release()
        assert await anext(states) == 1
        async with aclosing(views.follow(session, "a", look)) as same:
            assert await anext(same) == 1
        with pytest.raises(LimitReached):
            views.follow(session, "b", look)
    await eventually(lambda: not views._watches)  # pyright: ignore[reportPrivateUsage]
    await views.follow(session, "b", look).aclose()


async def test_failing_look_ends_stream(harness: ApiHarness, caplog: pytest.LogCaptureFixture) -> None:
    session = await harness.store.get(await harness.create_session(), owner="")

    async def look(latest: int | None) -> Glance[int]:
        raise ValueError("a fault")

    states = LiveViews[int](harness.feed, PageViews()).follow(session, "a", look)
    assert [state async for state in states] == []
    assert "live view ended: unexpected error" in caplog.text
