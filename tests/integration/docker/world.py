"""A small world beyond this machine, in a network namespace: web servers at public, private and metadata addresses."""

import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

import pytest

SERVER = """
import http.server, sys, urllib.parse
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        to = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("to")
        self.send_response(302 if to else 200)
        if to:
            self.send_header("Location", to[0])
        self.end_headers()
        self.wfile.write(f"this is {self.connection.getsockname()[0]}".encode())
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 80), Handler)
print("listening", flush=True)
server.serve_forever()
"""

METADATA = "169.254.169.254"


@dataclass(frozen=True)
class World:
    """Addresses of the world; `host` is this machine's own in the world's network."""

    host: str
    allowed: str
    forbidden: str
    """Public like `allowed`; a list may leave it out."""
    private: str
    metadata: str = METADATA

    def redirect(self, target: str) -> str:
        """A page of `allowed` that sends whoever opens it to `target`."""
        return f"http://{self.allowed}/?to={quote(target)}"


def answers(address: str) -> bool:
    """Whether this machine gets an answer from there: a test that cannot reach it shows nothing about a sandbox."""
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
            return answer.read().startswith(b"this is")
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def world() -> Iterator[World]:
    """Make it, and remove it at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    number = secrets.randbelow(16)
    name = f"anker-{secrets.token_hex(3)}"
    outer, inner = f"{name}o"[:15], f"{name}i"[:15]
    public = [f"203.0.113.{128 + 8 * number + n}" for n in (1, 2, 3)]
    private = [f"10.213.{number}.{n}" for n in (1, 2)]
    within = ["netns", "exec", name, "ip"]
    try:
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        for address in (f"{public[0]}/29", f"{private[0]}/24"):
            _ip("addr", "add", address, "dev", outer)
        for address in (f"{public[1]}/29", f"{public[2]}/29", f"{private[1]}/24", f"{METADATA}/32"):
            _ip(*within, "addr", "add", address, "dev", inner)
        _ip("link", "set", outer, "up")
        for device in (inner, "lo"):
            _ip(*within, "link", "set", device, "up")
        _ip(*within, "route", "add", "default", "via", public[0])
        _ip("route", "replace", f"{METADATA}/32", "dev", outer)
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None and server.stdout.readline() == "listening\n"
            made = World(public[0], public[1], public[2], private[1])
            assert all(answers(each) for each in (made.allowed, made.forbidden, made.private, made.metadata))
            yield made
        finally:
            server.kill()
            server.communicate()
    finally:
        subprocess.run(["ip", "link", "del", outer], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stderr)
