"""Services with local sandboxes as processes of their own, which the tests tell what to do: one JSON object a line."""

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.local import LocalSandboxes
from tests.integration.sandbox_processes import run

REPOSITORY = Path(__file__).parents[2]


class Service:
    """The test's end of one such process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[object]] = {}
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def acquire(self, session_id: str) -> object:
        """The computer's name."""
        return await self.ask("acquire", session_id)

    async def find(self, session_id: str) -> object:
        """The computer's name, or None."""
        return await self.ask("find", session_id)

    async def run(self, session_id: str, command: str) -> object:
        """What `command`, which ends, wrote in the shell `main` of the sandbox that this service was last given."""
        return await self.ask("run", session_id, command)

    async def begin(self, session_id: str, command: str) -> None:
        """Let a command go on there."""
        await self.ask("begin", session_id, command)

    async def ask(self, call: str, *arguments: object) -> object:
        """Raises SandboxUnavailable or SandboxFailure as the call did, ConnectionError when the process has died."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([number, call, *arguments]).encode() + b"\n")
        async with asyncio.timeout(60):
            return await answer

    async def kill(self) -> None:
        """SIGKILL, and wait for it."""
        self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        """In order, if it still runs."""
        if self._process.returncode is None and self._process.stdin is not None:
            self._process.stdin.close()
        async with asyncio.timeout(60):
            await self._process.wait()
            await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            number, kind, value = json.loads(line)
            answer = self._asked.pop(number)
            if kind == "value":
                answer.set_result(value)
            else:
                answer.set_exception({"failure": SandboxFailure, "unavailable": SandboxUnavailable}[kind](value))
        for answer in self._asked.values():
            answer.set_exception(ConnectionError("the service has died"))


@asynccontextmanager
async def service(data_dir: Path, *, ttl_seconds: float = 1800, exec_seconds: float = 0.3) -> AsyncIterator[Service]:
    """One on `data_dir`, started; ended at the end, if it still runs."""
    arguments = (os.fspath(data_dir), str(ttl_seconds / 60), str(exec_seconds))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.local_services", *arguments),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    started = Service(process)
    try:
        await started.ask("ready")
        yield started
    finally:
        try:
            await started.end()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _answered(provider: LocalSandboxes, given: dict[str, HttpSandbox], call: str, arguments: list[str]) -> object:
    match call:
        case "ready":
            return None
        case "acquire":
            given[arguments[0]] = await provider.acquire(arguments[0])
            return given[arguments[0]].instance_id
        case "find":
            found = await provider.find(arguments[0])
            if found is not None:
                given[arguments[0]] = found
            return found and found.instance_id
        case "run" | "begin" | "view":
            return await _used(given[arguments[0]], call, *arguments[1:])
        case "destroy":
            return await provider.destroy(arguments[0])
        case "expire":
            return await provider.expire()
        case "sweep":
            return await provider.sweep(arguments)
        case _:
            raise ValueError(call)


async def _used(sandbox: HttpSandbox, call: str, command: str = "") -> str | None:
    match call:
        case "run":
            return await run(sandbox, command)
        case "begin":
            await sandbox.shell_exec("main", "", command)
            return None
        case _:
            return (await sandbox.shell_view("main")).output


async def _serve(data_dir: Path, *, ttl_minutes: float, exec_seconds: float) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    given: dict[str, HttpSandbox] = {}
    tasks: set[asyncio.Task[None]] = set()
    async with LocalSandboxes(data_dir, ttl_minutes=ttl_minutes, exec_seconds=exec_seconds) as provider:

        async def answer(number: int, call: str, arguments: list[str]) -> None:
            try:
                kind, value = "value", await _answered(provider, given, call, arguments)
            except SandboxUnavailable as error:
                kind, value = "unavailable", str(error)
            except SandboxFailure as error:
                kind, value = "failure", str(error)
            print(json.dumps([number, kind, value]), flush=True)

        while line := await reader.readline():
            number, call, *arguments = json.loads(line)
            task = asyncio.create_task(answer(number, call, arguments))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), ttl_minutes=float(sys.argv[2]), exec_seconds=float(sys.argv[3])))
