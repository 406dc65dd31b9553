"""The service as a process on a loopback port, and a client that reads its streams as a frontend does."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.sse import SseFrame, read_frames

ROOT = Path(__file__).parents[2]
"""Root folder of the repository."""

READ_SECONDS = 60.0
"""Default limit in seconds for a stream to bring what a test waits for."""


class ChatStream:
    """An open chat stream. A task reads it and keeps every frame."""

    def __init__(self, response: httpx.Response) -> None:
        self.frames: list[SseFrame] = []
        self.ended = asyncio.Event()
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._read(response))

    async def _read(self, response: httpx.Response) -> None:
        try:
            with contextlib.suppress(httpx.HTTPError):
                async for frame in read_frames(response):
                    self.frames.append(frame)
                    self._changed.set()
        finally:
            self.ended.set()
            self._changed.set()
            await response.aclose()

    async def wait_for(self, event: str, seconds: float = READ_SECONDS, **expected: Any) -> SseFrame:
        """Wait for the first frame of type `event` whose data has the `expected` values, and return it."""
        async with asyncio.timeout(seconds):
            position = 0
            while True:
                self._changed.clear()
                for frame in self.frames[position:]:
                    if frame.event == event and expected.items() <= frame.data.items():
                        return frame
                position = len(self.frames)
                if self.ended.is_set():
                    raise AssertionError(f"the stream ended without {event} {expected}: {self.event_types}")
                await self._changed.wait()

    async def read_all(self, seconds: float = READ_SECONDS) -> list[SseFrame]:
        """Wait for the end of the stream and return every frame."""
        async with asyncio.timeout(seconds):
            await self.ended.wait()
        return self.frames

    @property
    def event_types(self) -> list[str]:
        return [frame.event for frame in self.frames]


class ApiClient:
    """A frontend of the service."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        limits = httpx.Limits(max_connections=500)
        self.http = httpx.AsyncClient(base_url=url, timeout=60, limits=limits, transport=transport)
        self._streams: list[ChatStream] = []

    async def create_session(self) -> str:
        return (await self.http.put("/api/v1/sessions")).json()["data"]["session_id"]

    async def open_chat(
        self, session_id: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> ChatStream:
        """Post to the chat endpoint; return once the service has responded with a stream."""
        request = self.http.build_request("POST", f"/api/v1/sessions/{session_id}/chat", json=body, headers=headers)
        response = await self.http.send(request, stream=True)
        assert response.status_code == 200, await response.aread()
        stream = ChatStream(response)
        self._streams.append(stream)
        return stream

    async def send_message(self, session_id: str, message: str, **more: Any) -> ChatStream:
        return await self.open_chat(session_id, {"message": message, **more})

    async def send_and_read(self, session_id: str, message: str, **more: Any) -> list[SseFrame]:
        """Send a message and return every frame of the stream."""
        return await (await self.send_message(session_id, message, **more)).read_all()

    async def get_session(self, session_id: str) -> dict[str, Any]:
        return (await self.http.get(f"/api/v1/sessions/{session_id}")).json()["data"]

    async def stop_run(self, session_id: str) -> httpx.Response:
        return await self.http.post(f"/api/v1/sessions/{session_id}/stop")

    async def close(self) -> None:
        for stream in self._streams:
            stream.task.cancel()
        await asyncio.gather(*(stream.task for stream in self._streams), return_exceptions=True)
        await self.http.aclose()


class ServiceNotStarted(Exception):
    """The service ended before it reported that it was up. The text is the end of its log."""


class ServiceProcess:
    """`python -m app` as a child process with an environment of its own.

    Args:
        data_dir: The `DATA_DIR` of the service; its log is written beside it.
        part: "api", "worker", or "" for both in one process.
        settings: Environment variables of the service.
    """

    def __init__(self, data_dir: Path, part: str = "", **settings: str) -> None:
        self.data_dir = data_dir
        self.part = part
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")}
        defaults = {"DATA_DIR": str(data_dir), "PORT": "0", "SANDBOX_PROVIDER": "local"}
        self.environment = {**inherited, **defaults, **settings}
        self.process: asyncio.subprocess.Process | None = None
        self.log = data_dir.parent / "service.log"
        self.url = ""

    async def start(self) -> ApiClient:
        """Start the service and return a client of it."""
        line = await self.launch()
        assert line.startswith("Anker listens on "), line
        self.url = line.split()[3]
        return ApiClient(self.url)

    async def launch(self, seconds: float = 60) -> str:
        """Start the process, wait until it is up, and return the first line that it prints.

        Raises:
            ServiceNotStarted: The process ended instead.
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
        try:
            async with asyncio.timeout(seconds):
                line = (await self.process.stdout.readline()).decode()
        except TimeoutError:
            raise AssertionError(f"not up within {seconds:g} s: {self.log.read_text()[-4000:]}") from None
        if not line:
            await self.process.wait()
            raise ServiceNotStarted(self.log.read_text()[-4000:])
        return line

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM, wait up to 60 s for the end, and return the exit code."""
        if self.process is None or self.process.returncode is not None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.process.wait()
