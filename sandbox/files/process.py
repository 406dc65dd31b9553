"""File calls in a process of their own, as root or not: the program for one call, and the code that starts it."""

import asyncio
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from sandbox.files.calls import CALLS, CallResult, FileCall, run_call
from sandbox.files.paths import NO_SUDO, PathResolver
from sandbox.lifeline import launch_prefix
from sandbox.settings import Settings
from sandbox.web import Failure, NoProcessLeft

_SECONDS = 50.0
"""Timeout of one call, in seconds."""
_PROGRAM = "import sys; sys.path[:0] = sys.argv[1:]; from sandbox.files.process import main; main()"
"""Program that carries out one call."""
_PACKAGES = str(Path(__file__).resolve().parents[2])
"""Folder that contains this package."""


class CallRunner:
    """Runs file calls in processes of their own; as root if the call asks for it and the settings allow it."""

    def __init__(self, settings: Settings) -> None:
        self.pids: set[int] = set()
        """Processes that this program waits for."""
        self._allowed = settings.sudo
        self._agent = settings.agent
        self._place: dict[str, object] = {"home": str(settings.home), "home_alias": str(settings.home_alias or "")}
        self._folders = {
            "roots": [str(root) for root in settings.roots],
            "closed": [str(root) for root in settings.closed],
        }

    async def call(self, name: str, body: FileCall) -> CallResult:
        """Run one call.

        Raises:
            Failure: The call's own failure; 400 without sudo; 409 if sudo does not work; 504 after a timeout.
        """
        if body.sudo and not self._allowed:
            raise Failure(400, NO_SUDO)
        place = self._place if body.sudo else self._place | self._folders
        request = {"call": name, "body": body.model_dump(exclude={"sudo"}), "place": place}
        process = self._start([*launch_prefix("KILL"), *(["sudo", "-n", "--"] if body.sudo else [])])
        try:
            stdout, stderr = await asyncio.to_thread(process.communicate, json.dumps(request).encode(), _SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(PermissionError):  # a process of root, and we may not end those of others
                process.kill()
            raise Failure(504, f"this took longer than {_SECONDS:g} s") from None
        finally:
            self.pids.discard(process.pid)
        return _parse_result(stdout, stderr, sudo=bool(body.sudo))

    def _start(self, prefix: list[str]) -> "subprocess.Popen[bytes]":
        # On the loop's thread: the pid must be known before dead orphans are collected.
        try:
            process = subprocess.Popen(  # noqa: S603 - a command of ours
                self._agent.command([*prefix, sys.executable, "-I", "-c", _PROGRAM, _PACKAGES], "/"),
                **self._agent.popen_options("/"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except BlockingIOError as error:
            raise NoProcessLeft from error
        except OSError as error:
            raise Failure(409, "sudo is not installed in this sandbox: leave out `sudo`") from error
        self.pids.add(process.pid)
        return process


def _parse_result(stdout: bytes, stderr: bytes, *, sudo: bool) -> CallResult:
    try:
        result: dict[str, dict[str, object]] = json.loads(stdout)
    except ValueError:
        reason = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        if sudo and reason.startswith("sudo:"):
            raise Failure(409, f"sudo does not work in this sandbox: {reason}") from None
        # The process crashed, or was killed at one of its limits.
        raise Failure(400, f"the file cannot be read: {reason or 'it takes too much time or memory'}") from None
    if "failure" in result:
        raise Failure(int(str(result["failure"]["status"])), str(result["failure"]["message"]))
    return result["data"], str(result["message"])


def main() -> None:
    """Run one call: JSON on stdin, its result as JSON on stdout."""
    _serve(sys.stdin.buffer, sys.stdout)


def _serve(request: IO[bytes], response: IO[str]) -> None:
    given = json.loads(request.read())
    paths = PathResolver(Settings(token="none", **given["place"]))  # noqa: S106 - nothing listens here
    kind, _ = CALLS[given["call"]]
    body = kind.model_validate(given["body"])
    try:
        data, message = paths.run(body.file, lambda place: run_call(given["call"], place, body))
    except Failure as failure:
        json.dump({"failure": {"status": failure.status, "message": failure.message}}, response)
    else:
        json.dump({"data": data, "message": message}, response)
