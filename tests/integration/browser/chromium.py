"""A headless Chromium for the tests, with DevTools on a loopback port."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

LISTENING = re.compile(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/")
OPTIONS = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--disable-gpu",
)


class Chromium:
    """One browser. Started again after `kill`, it has the same port and the same profile."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the browser and wait until DevTools listens."""
        program = shutil.which("chromium") or shutil.which("google-chrome")
        assert program, "Chromium is not installed"
        arguments = [
            program,
            "--headless=new",
            f"--remote-debugging-port={self.port}",
            f"--user-data-dir={self.home / '.profile'}",
            "--window-size=1000,700",
            *OPTIONS,
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "about:blank",
        ]
        environment = {**os.environ, "HOME": str(self.home)}
        self._process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := LISTENING.search(line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("Chromium did not start")
        threading.Thread(target=_drain, args=(self._process.stderr,), daemon=True).start()

    def kill(self) -> None:
        """Kill every process of the browser, like a crash."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for lock in self.home.glob(".profile/Singleton*"):
                lock.unlink()

    @property
    def url(self) -> str:
        """URL of DevTools."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """Process ids of the browser."""
        assert self._process is not None
        group = self._process.pid
        return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and _group(each) == group]

    def tabs(self) -> list[str]:
        """Return the ids of the tabs."""
        return re.findall(r'"id": "(\w+)",\s+"title"[^}]*?"type": "page"', self._request("GET", "/json/list"))

    def close_tabs(self) -> None:
        """Replace all tabs with a blank one."""
        before = self.tabs()
        self._request("PUT", "/json/new?about:blank")
        deadline = time.monotonic() + 10
        while left := set(before) & set(self.tabs()):
            assert time.monotonic() < deadline, "tabs did not close"
            for tab in left:
                self._request("GET", f"/json/close/{tab}")

    def _request(self, method: str, path: str) -> str:
        request = urllib.request.Request(self.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:  # the tab has been closed meanwhile
            return error.read().decode()


def _group(process: Path) -> int:
    try:
        return os.getpgid(int(process.name))
    except OSError:
        return 0


def _drain(stream: object) -> None:
    for _ in stream:  # type: ignore[attr-defined]
        pass
