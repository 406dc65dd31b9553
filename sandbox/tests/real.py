"""Harness: the program as a real process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]


def below(pid: int) -> list[psutil.Process]:
    """Return the living descendants of `pid`."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if _state(process) not in (None, psutil.STATUS_ZOMBIE)]


def name(process: psutil.Process) -> str:
    """Return the name of a process; empty if it has ended."""
    try:
        return process.name()
    except psutil.Error:
        return ""


def arguments(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _state(process: psutil.Process) -> str | None:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return None


class Service:
    """A real `python -m sandbox` on an inherited socket, with a lifeline; `program` is what Python runs instead."""

    def __init__(self, tmp_path: Path, *, program: tuple[str, str] = ("-m", "sandbox"), **env: str) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(16)
        reading, self.lifeline = os.pipe()
        settings = {
            "SANDBOX_TOKEN": "t",
            "SANDBOX_HOME": str(tmp_path / "home"),
            "SANDBOX_OUTPUT_DIR": str(tmp_path / "out"),
            "SANDBOX_FD": str(self.socket.fileno()),
            "SANDBOX_LIFELINE_FD": str(reading),
            "SANDBOX_EXEC_SECONDS": "0.2",
        }
        fds = (self.socket.fileno(), reading)
        self.process = subprocess.Popen(
            [sys.executable, *program], cwd=ROOT, env={**os.environ, **settings, **env}, pass_fds=fds
        )
        os.close(reading)
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.headers = {"Authorization": "Bearer t"}
        self.client = httpx.Client(base_url=f"http://{self.address}/api/v1", headers=self.headers, timeout=30)

    def run(self, command: str, id: str = "a") -> dict:
        body = {"id": id, "exec_dir": "", "command": command}
        return self.client.post("/shell/exec", json=body).json()["data"]

    def status(self) -> dict:
        return self.client.get("/status").json()["data"]

    def stop(self) -> None:
        self.client.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()
        os.close(self.lifeline) if self.lifeline >= 0 else None
