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
        asked = {"call": name, "body": body.model_dump(exclude={"sudo"}), "place": self._place}
        process = self._start()
        try:
            said, complaint = await asyncio.to_thread(process.communicate, json.dumps(asked).encode(), _SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure(504, f"this took root longer than {_SECONDS:g} s") from None
        finally:
            self.pids.discard(process.pid)
        return _answer(said, complaint)

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


def _answer(said: bytes, complaint: bytes) -> CallResult:
    try:
        answer: dict[str, dict[str, object]] = json.loads(said)
    except ValueError:
        words = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise Failure(409, f"sudo does not work in this sandbox: {words}") from None
    if "failure" in answer:
        raise Failure(int(str(answer["failure"]["status"])), str(answer["failure"]["message"]))
    return answer["data"], str(answer["message"])


def main() -> None:
    """Run one call: JSON on stdin, its result as JSON on stdout."""
    _serve(sys.stdin.buffer, sys.stdout)


def _serve(asked: IO[bytes], answered: IO[str]) -> None:
    given = json.loads(asked.read())
    paths = PathResolver(Settings(token="none", **given["place"]))  # noqa: S106 - nothing listens here
    kind, _ = CALLS[given["call"]]
    body = kind.model_validate(given["body"])
    try:
        data, message = paths.run(body.file, lambda place: run_call(given["call"], place, body))
    except Failure as failure:
        json.dump({"failure": {"status": failure.status, "message": failure.message}}, answered)
    else:
        json.dump({"data": data, "message": message}, answered)
