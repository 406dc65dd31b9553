"""File calls as root: the program that sudo runs for each call, and the code that starts it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import IO

from sandbox.files.calls import CALLS, CallResult, FileCall, run_call
from sandbox.files.paths import NO_SUDO, PathResolver
from sandbox.settings import Settings
from sandbox.web import Failure

_SECONDS = 50.0
"""Timeout of one call, in seconds."""
_PROGRAM = "import sys; sys.path[:0] = sys.argv[1:]; from sandbox.files.root import main; main()"
"""Program that sudo runs."""
_PACKAGES = str(Path(__file__).resolve().parents[2])
"""Folder that contains this package."""


class SudoRunner:
    """Runs file calls as root if the settings allow it."""

    def __init__(self, settings: Settings) -> None:
        self.pids: set[int] = set()
        """Processes that this program waits for."""
        self._allowed = settings.sudo
        self._place = {"home": str(settings.home), "home_alias": str(settings.home_alias or "")}

    async def call(self, name: str, body: FileCall) -> CallResult:
        """Run one call as root.

        Raises:
            Failure: The call's own failure; 400 without sudo; 409 if sudo does not work; 504 after a timeout.
        """
        if not self._allowed:
            raise Failure(400, NO_SUDO)
        request = {"call": name, "body": body.model_dump(exclude={"sudo"}), "place": self._place}
        process = self._start()
        try:
            stdout, stderr = await asyncio.to_thread(process.communicate, json.dumps(request).encode(), _SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure(504, f"this took root longer than {_SECONDS:g} s") from None
        finally:
            self.pids.discard(process.pid)
        return _parse_result(stdout, stderr)

    def _start(self) -> "subprocess.Popen[bytes]":
        # On the loop's thread: the pid must be known before dead orphans are collected.
        try:
            process = subprocess.Popen(  # noqa: S603 - a command of ours
                ["sudo", "-n", "--", sys.executable, "-I", "-c", _PROGRAM, _PACKAGES],  # noqa: S607
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise Failure(409, "sudo is not installed in this sandbox: leave out `sudo`") from error
        self.pids.add(process.pid)
        return process


def _parse_result(stdout: bytes, stderr: bytes) -> CallResult:
    try:
        result: dict[str, dict[str, object]] = json.loads(stdout)
    except ValueError:
        reason = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise Failure(409, f"sudo does not work in this sandbox: {reason}") from None
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
