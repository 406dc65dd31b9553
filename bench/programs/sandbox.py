"""A stand-in for the sandbox that runs nothing and responds to shell calls at once.

`BENCH_TOKEN` is its token. `GET /bench/execs` returns `[[arrived, responded], …]` of every exec in monotonic seconds.
"""

import os
import time

import orjson

from bench.programs.rawhttp import Exchange, Request, serve

OUTPUT = "total 8\ndrwxr-xr-x 2 ubuntu ubuntu 4096 Jan  1 00:00 .\ndrwxr-xr-x 9 root   root   4096 Jan  1 00:00 ..\n"


class Sandbox:
    """The stand-in for the sandbox."""

    def __init__(self, token: str) -> None:
        self._authorization = f"\r\nauthorization: bearer {token}\r\n".encode()
        self._execs: list[tuple[float, float]] = []

    def respond(self, exchange: Exchange, request: Request) -> None:
        """Respond to one request in the sandbox's envelope."""
        if request.path == "/bench/execs":
            exchange.send(orjson.dumps(self._execs))
        elif self._authorization not in request.head.lower():
            exchange.send(_envelope(None, message="no or wrong token"), status="401 Unauthorized")
        elif request.path == "/api/v1/shell/exec":
            body = _envelope(_ended(orjson.loads(request.body)), message="ended with exit code 0")
            self._execs.append((request.at, time.monotonic()))
            exchange.send(body)
        elif request.path == "/api/v1/shell/kill_all":
            exchange.send(_envelope({"killed": []}))
        elif request.path == "/api/v1/status":
            missing = {"ready": False, "reason": "not installed"}
            exchange.send(_envelope({"shell": {"ready": True, "reason": ""}, "browser": missing, "desktop": missing}))
        else:
            exchange.send(_envelope(None, message="no such route"), status="404 Not Found")


def _envelope(data: dict[str, object] | None, message: str = "") -> bytes:
    return orjson.dumps({"success": data is not None, "message": message, "data": data})


def _ended(call: dict[str, str]) -> dict[str, object]:
    return {
        "session_id": call["id"],
        "status": "completed",
        "returncode": 0,
        "command": call["command"],
        "output": OUTPUT,
        "truncated": False,
        "output_file": f"/tmp/anker-shell-0/{call['id']}/1.txt",
        "console": [{"ps1": "ubuntu@sandbox:~$", "command": call["command"], "output": OUTPUT}],
    }


if __name__ == "__main__":
    serve(Sandbox(os.environ["BENCH_TOKEN"]).respond)
