"""The whole service on a loopback port, and a client that reads its streams as a frontend would."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Seen:
    """One SSE frame."""

    event: str
    data: dict[str, Any]
    id: str | None
    raw: str


async def frames(response: httpx.Response) -> AsyncIterator[Seen]:
    """The frames of a stream, comments left out."""
    lines: list[str] = []
    async for line in response.aiter_lines():
        if line:
            lines.append(line)
            continue
        fields = dict(item.split(": ", 1) for item in lines if not item.startswith(":"))
        if fields:
            yield Seen(fields["event"], json.loads(fields["data"]), fields.get("id"), fields["data"])
        lines = []


@dataclass
class Chat:
    """An open chat stream, read by a task of its own."""

    seen: list[Seen] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    async def read(self, response: httpx.Response) -> None:
        try:
            async for item in frames(response):
                self.seen.append(item)
                self._changed.set()
        finally:
            self.ended.set()
            self._changed.set()

    async def until(self, event: str, seconds: float = 60, **expected: Any) -> Seen:
        """The first frame of type `event` whose data has these values, waiting for it."""
        async with asyncio.timeout(seconds):
            position = 0
            while True:
                self._changed.clear()
                for item in self.seen[position:]:
                    if item.event == event and all(item.data.get(k) == v for k, v in expected.items()):
                        return item
                position = len(self.seen)
                if self.ended.is_set():
                    raise AssertionError(f"the stream ended without {event} {expected}: {self.types}")
                await self._changed.wait()

    async def end(self, seconds: float = 60) -> list[Seen]:
        """Everything, once the stream has ended."""
        async with asyncio.timeout(seconds):
            await self.ended.wait()
        return self.seen

    @property
    def types(self) -> list[str]:
        return [item.event for item in self.seen]


class Client:
    """What a frontend does."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=500))
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self) -> str:
        return (await self.http.put("/api/v1/sessions")).json()["data"]["session_id"]

    async def open(self, session: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Chat:
        """Begin a chat; returns once the service has answered with a stream."""
        request = self.http.build_request("POST", f"/api/v1/sessions/{session}/chat", json=body, headers=headers)
        response = await self.http.send(request, stream=True)
        assert response.status_code == 200, await response.aread()
        chat = Chat()

        async def read() -> None:
            with contextlib.suppress(httpx.HTTPError):
                try:
                    await chat.read(response)
                finally:
                    await response.aclose()

        chat.task = asyncio.create_task(read())
        self._tasks.add(chat.task)
        return chat

    async def say(self, session: str, message: str, **more: Any) -> Chat:
        return await self.open(session, {"message": message, **more})

    async def run(self, session: str, message: str, **more: Any) -> list[Seen]:
        """Say something and read to the end."""
        return await (await self.say(session, message, **more)).end()

    async def history(self, session: str) -> dict[str, Any]:
        return (await self.http.get(f"/api/v1/sessions/{session}")).json()["data"]

    async def stop(self, session: str) -> httpx.Response:
        return await self.http.post(f"/api/v1/sessions/{session}/stop")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.http.aclose()


class NotStarted(Exception):
    """The service ended before it said that it was up; the text is the end of its log."""


class ServiceProcess:
    """`python -m app` as a child, with an environment of its own. `part`: "api" or "worker" alone."""

    def __init__(self, data_dir: Path, part: str = "", **settings: str) -> None:
        self.data_dir = data_dir
        self.part = part
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")}
        own = {"DATA_DIR": str(data_dir), "PORT": "0", "SANDBOX_PROVIDER": "local"}
        self.environment = {**kept, **own, **settings}
        self.process: asyncio.subprocess.Process | None = None
        self.log = data_dir.parent / "service.log"
        self.url = ""

    async def start(self) -> Client:
        line = await self.launch()
        assert line.startswith("Anker listens on "), line
        self.url = line.split()[3]
        return Client(self.url)

    async def launch(self, seconds: float = 60) -> str:
        """Start it; its first line, which it says when it is up.

        Raises:
            NotStarted: it ended instead.
        """
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app", *([self.part] if self.part else [])),
                cwd=ROOT,
                env=self.environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            line = (await self.process.stdout.readline()).decode()
        if not line:
            await self.process.wait()
            raise NotStarted(self.log.read_text()[-4000:])
        return line

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """As the machine's end would: without a chance to tidy up."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code. Fails when it hangs; how long it may take is for who asks to say."""
        if self.process is None or self.process.returncode is not None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.process.wait()
