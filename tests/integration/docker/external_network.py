"""Web servers at public, private and metadata addresses, in a network namespace outside the sandboxes' network."""

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
        target = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("to")
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target[0])
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
class ExternalNetwork:
    """Addresses in the external network. Every address but `host` has a web server on port 80."""

    host: str
    """The address of this machine."""
    allowed: str
    """A public address."""
    unlisted: str
    """Another public address, which an egress list may leave out."""
    private: str
    lan: str
    """A public address within a network of this machine."""
    metadata: str = METADATA

    def redirect(self, target: str) -> str:
        """Return the URL of a page of `allowed` that redirects to `target`."""
        return f"http://{self.allowed}/?to={quote(target)}"


def responds(address: str) -> bool:
    """Return whether this machine reaches the server at `address`. If not, a test there proves nothing."""
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=5) as response:
            return response.read().startswith(b"this is")
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def external_network() -> Iterator[ExternalNetwork]:
    """Create the network and its servers; remove them at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    # Other test runs on this machine have such networks too. Each has a route of its own to the same address.
    number, metric = secrets.randbelow(256), str(1 + secrets.randbelow(10**6))
    name = f"anker-{secrets.token_hex(3)}"
    outer, inner = f"{name}o"[:15], f"{name}i"[:15]
    public = [f"6.213.{number}.{128 + n}" for n in (1, 2, 3)]
    private = [f"10.213.{number}.{n}" for n in (1, 2)]
    lan = [f"6.214.{number}.{n}" for n in (1, 2)]
    inside = ["netns", "exec", name, "ip"]
    try:
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        for address in (f"{public[0]}/32", f"{private[0]}/24", f"{lan[0]}/24"):
            _ip("addr", "add", address, "dev", outer)
        for address in (f"{public[1]}/32", f"{public[2]}/32", f"{private[1]}/24", f"{lan[1]}/24", f"{METADATA}/32"):
            _ip(*inside, "addr", "add", address, "dev", inner)
        _ip("link", "set", outer, "up")
        for device in (inner, "lo"):
            _ip(*inside, "link", "set", device, "up")
        _ip(*inside, "route", "add", "default", "via", private[0])
        for address in public[1:]:
            _ip("route", "add", f"{address}/32", "via", private[1], "metric", metric)
        _ip("route", "add", f"{METADATA}/32", "dev", outer, "metric", metric)
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None and server.stdout.readline() == "listening\n"
            network = ExternalNetwork(public[0], public[1], public[2], private[1], lan[1])
            servers = (network.allowed, network.unlisted, network.private, network.lan, network.metadata)
            assert all(responds(each) for each in servers)
            yield network
        finally:
            server.kill()
            server.communicate()
    finally:
        subprocess.run(["ip", "link", "del", outer], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stderr)
