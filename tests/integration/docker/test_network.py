"""What sandboxes can connect to, tried from inside. Each closed server is shown to respond to this machine."""

import asyncio
import contextlib
import http.server
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import SandboxUnavailable
from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.engine_objects import SANDBOX_PORT
from app.infrastructure.sandbox.docker.network import firewall
from app.infrastructure.sandbox.docker.network.egress import parse_egress
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import IMAGE, EngineSandbox, read, run, write
from tests.integration.docker.external_network import ExternalNetwork, responds
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

METADATA_NOTATIONS = (
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
)


async def fetch(sandbox: Sandbox, url: str) -> str:
    """Return what a sandbox gets from `url`, following redirects; "" if the request fails."""
    code, output = await run(sandbox, f"curl -sgL --max-time 10 --noproxy '*' '{url}'")
    return "" if code else output


async def serve(sandbox: Sandbox, port: int) -> None:
    """Start a web server in the sandbox and wait until it responds there."""
    await sandbox.shell_exec("server", "", f"python3 -m http.server {port} >/dev/null 2>&1 &")
    request = f"curl -s --retry 50 --retry-connrefused --retry-delay 1 http://127.0.0.1:{port}/ >/dev/null"
    assert (await run(sandbox, request))[0] == 0


async def test_open_egress_reaches_public_servers_and_no_private_ones(
    sandbox: Sandbox, external: ExternalNetwork
) -> None:
    assert await fetch(sandbox, f"http://{external.allowed}/") == f"this is {external.allowed}"
    assert await fetch(sandbox, f"http://{external.unlisted}/") == f"this is {external.unlisted}"
    assert responds(external.private) and await fetch(sandbox, f"http://{external.private}/") == ""


async def test_network_of_the_host_is_closed_whatever_its_addresses(
    provider: DockerSandboxes, sandbox: Sandbox, external: ExternalNetwork
) -> None:
    provider.firewall.invalidate()
    await provider.firewall.ensure()
    assert responds(external.lan) and await fetch(sandbox, f"http://{external.lan}/") == ""


async def test_forbidden_address_stays_closed_while_networks_are_created(
    engine: EngineSandbox, sandbox: Sandbox, external: ExternalNetwork
) -> None:
    # For each new network, the engine takes its own jump out of the forwarding rules for a moment.
    attempts = (
        "import os, socket\nreached = 0\nwhile not os.path.exists('enough'):\n    s = socket.socket()\n"
        f"    reached += not s.connect_ex(('{external.private}', 80))\n    s.close()\nprint('reached', reached)\n"
    )
    await write(sandbox, "attempts.py", attempts)
    await run(sandbox, "rm -f enough")
    await sandbox.shell_exec("attempts", "", "(python3 attempts.py)")
    try:
        await asyncio.to_thread(_create_networks, engine, 20)
    finally:
        await run(sandbox, "touch enough")
    state = await sandbox.shell_wait("attempts", 10)
    assert state.output == "reached 0\n"


def _create_networks(engine: EngineSandbox, count: int) -> None:
    for number in range(count):
        created = engine.api.create_network(f"{engine.network}-{number}", "bridge")
        engine.api.remove_network(created["Id"])


@pytest.mark.parametrize("address", METADATA_NOTATIONS)
async def test_metadata_address_is_unreachable_in_every_notation(
    sandbox: Sandbox, external: ExternalNetwork, address: str
) -> None:
    assert responds(external.metadata)
    assert await fetch(sandbox, f"http://{address}/") == ""


async def test_redirect_to_closed_address_fails(sandbox: Sandbox, external: ExternalNetwork) -> None:
    assert await fetch(sandbox, external.redirect(f"http://{external.unlisted}/")) == f"this is {external.unlisted}"
    for target in (external.metadata, external.private, "2852039166"):
        code, _ = await run(sandbox, f"curl -sgL --max-time 10 '{external.redirect(f'http://{target}/')}'")
        assert code == 7  # curl followed the redirect and could not connect


async def test_closed_address_rejects_tcp_and_udp_at_once(sandbox: Sandbox, external: ExternalNetwork) -> None:
    script = (
        "import socket, time\n"
        f"for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    begun, s = time.monotonic(), socket.socket(socket.AF_INET, kind)\n"
        "    s.settimeout(5)\n"
        "    try:\n"
        f"        s.connect(('{external.private}', 80)); s.send(b'x'); s.recv(1)\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__, time.monotonic() - begun < 3)\n"
    )
    await write(sandbox, "refused.py", script)
    assert await run(sandbox, "python3 refused.py") == (0, "ConnectionRefusedError True\nOSError True\n")


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a server that listens on all addresses of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"this is the host")

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


async def test_ports_of_the_host_are_closed_at_all_its_addresses(
    engine: EngineSandbox, sandbox: Sandbox, external: ExternalNetwork, listener: int
) -> None:
    gateway = engine.gateway()
    listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    addresses = {gateway, external.host, *(each for each in listed if ":" not in each)}
    assert {gateway, external.host} <= {each for each in addresses if responds(f"{each}:{listener}")}
    for address in addresses:
        assert await fetch(sandbox, f"http://{address}:{listener}/") == "", address
    for address in (each for each in listed if ":" in each):
        assert await fetch(sandbox, f"http://[{address}]:{listener}/") == "", address


async def test_published_port_of_another_container_is_closed(
    engine: EngineSandbox, sandbox: Sandbox, external: ExternalNetwork
) -> None:
    server = "import http.server as s; s.test(s.SimpleHTTPRequestHandler, port=8000)"
    config = engine.api.create_host_config(port_bindings={8000: None})
    name = f"{engine.prefix}-published"
    made = engine.api.create_container(
        IMAGE, entrypoint=["python3", "-c", server], name=name, ports=[8000], host_config=config, working_dir="/srv"
    )
    try:
        engine.api.start(made)
        settings = engine.api.inspect_container(name)["NetworkSettings"]
        port, own = settings["Ports"]["8000/tcp"][0]["HostPort"], settings["IPAddress"]
        await eventually(lambda: asyncio.to_thread(_listens, external.host, int(port)))
        for target in (f"{external.host}:{port}", f"{own}:8000", f"172.17.0.1:{port}"):
            assert await fetch(sandbox, f"http://{target}/") == "", target
    finally:
        engine.api.remove_container(name, force=True)


async def test_sandbox_cannot_reach_another_sandbox(
    engine: EngineSandbox, provider: DockerSandboxes, sandbox: Sandbox
) -> None:
    session = engine.new_session()
    other = await provider.acquire(session)
    address = engine.address(session)
    assert other.browser.url.startswith(f"http://{address}:{SANDBOX_PORT}/")
    assert (await run(sandbox, f"curl -sS --max-time 5 http://{address}:{SANDBOX_PORT}/api/v1/status"))[0] == 7
    await serve(other, 9000)
    assert (await run(sandbox, f"curl -sS --max-time 5 http://{address}:9000/"))[0] == 7
    await provider.destroy(session)


async def test_open_egress_keeps_dns_and_disables_ipv6(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "cat /proc/sys/net/ipv6/conf/all/disable_ipv6"))[1].strip() in ("1", "")
    assert (await run(sandbox, "cat /proc/net/if_inet6"))[1].strip() == ""
    assert "timeout:1" not in (await run(sandbox, "cat /etc/resolv.conf"))[1]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def closed_sandbox(engine: EngineSandbox) -> AsyncIterator[Sandbox]:
    """A sandbox with egress `none`."""
    async with engine.provider(egress="none", network=f"{engine.network}-none") as provider:
        session = engine.new_session()
        yield await provider.acquire(session)
        await provider.destroy(session)


async def test_egress_none_reaches_nothing_and_resolves_no_name(
    closed_sandbox: Sandbox, external: ExternalNetwork
) -> None:
    for address in (external.allowed, external.unlisted, external.private, external.metadata):
        assert responds(address) and await fetch(closed_sandbox, f"http://{address}/") == ""
    assert (await run(closed_sandbox, "timeout 10 getent hosts anything.example"))[0] == 2
    with open("/etc/resolv.conf") as file:
        resolvers = [line.split()[1] for line in file if line.startswith("nameserver")]
    connect = 'python3 -c "import socket,sys; s=socket.create_connection((sys.argv[1], 53), 5)" '
    for resolver in (*resolvers, external.allowed):
        assert (await run(closed_sandbox, connect + resolver))[0] == 1


ALLOWED, INWARD, LATER = "allowed.test", "inward.test", "later.test"


@pytest.fixture
def names(external: ExternalNetwork, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses that the service's resolver returns for names that end in `.test`."""
    known: dict[str, list[str]] = {
        ALLOWED: [external.allowed],
        INWARD: [external.private, external.metadata],
        LATER: [],
    }
    real = asyncio.BaseEventLoop.getaddrinfo

    async def lookup(self: asyncio.BaseEventLoop, host: str, port: Any, **more: Any) -> Any:
        if not host.endswith(".test"):
            return await real(self, host, port, **more)
        if not known[host]:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    return known


async def test_egress_list_reaches_addresses_of_listed_hosts_only(
    engine: EngineSandbox, external: ExternalNetwork, names: dict[str, list[str]]
) -> None:
    egress = parse_egress(f"{ALLOWED}, {INWARD}, {LATER}")
    async with engine.provider(egress=egress, network=f"{engine.network}-list") as provider:
        session = engine.new_session()
        sandbox = await provider.acquire(session)
        assert await fetch(sandbox, f"http://{ALLOWED}/") == f"this is {external.allowed}"
        assert await fetch(sandbox, f"http://{external.allowed}/") == f"this is {external.allowed}"
        # A name must not open private addresses: otherwise its DNS server could open private networks.
        for target in (external.unlisted, external.private, external.metadata, INWARD, "2852039166"):
            assert await fetch(sandbox, f"http://{target}/") == "", target
        assert await fetch(sandbox, external.redirect(f"http://{external.unlisted}/")) == ""
        assert (await run(sandbox, "timeout 10 getent hosts anything.example"))[0] == 2

        # New addresses of a listed name are opened for running sandboxes too.
        names[LATER].append(external.unlisted)
        names[ALLOWED].clear()
        await provider.reap()
        assert await fetch(sandbox, f"http://{external.unlisted}/") == f"this is {external.unlisted}"
        assert await fetch(sandbox, f"http://{ALLOWED}/") == f"this is {external.allowed}"
        await provider.destroy(session)


async def test_egress_list_with_private_address_reaches_it(engine: EngineSandbox, external: ExternalNetwork) -> None:
    egress = parse_egress(f"{external.private} {external.unlisted}/32")
    async with engine.provider(egress=egress, network=f"{engine.network}-number") as provider:
        session = engine.new_session()
        sandbox = await provider.acquire(session)
        assert await fetch(sandbox, f"http://{external.private}/") == f"this is {external.private}"
        assert await fetch(sandbox, f"http://{external.unlisted}/") == f"this is {external.unlisted}"
        assert await fetch(sandbox, f"http://{external.allowed}/") == ""
        await provider.destroy(session)


async def test_removed_or_overridden_rules_are_restored(
    engine: EngineSandbox,
    provider: DockerSandboxes,
    sandbox: Sandbox,
    external: ExternalNetwork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = f"ANKER-F-{engine.bridge.removeprefix('anker-')}"
    jump = ["-i", engine.bridge, "-j"]
    before = rules(engine)
    iptables("-I", "FORWARD", "1", *jump, "ACCEPT")
    try:
        assert await fetch(sandbox, f"http://{external.private}/") != ""
        await provider.firewall.refresh()  # does not look at rules that were applied a short time ago
        monkeypatch.setattr(firewall, "REAPPLY_SECONDS", 0.0)
        await provider.reap()
        assert await fetch(sandbox, f"http://{external.private}/") == ""
    finally:
        iptables("-D", "FORWARD", *jump, "ACCEPT")
    iptables("-F", chain)
    iptables("-D", "INPUT", *jump, chain.replace("-F-", "-I-"))
    assert await fetch(sandbox, f"http://{external.private}/") != ""
    await provider.reap()
    assert await fetch(sandbox, f"http://{external.private}/") == ""
    assert rules(engine) == before


async def test_without_firewall_no_sandbox_starts(engine: EngineSandbox) -> None:
    # This image has no iptables.
    async with engine.provider(image="debian:bookworm-slim", network=f"{engine.network}-bare") as provider:
        session = engine.new_session()
        with pytest.raises(SandboxUnavailable, match="could not be set up"):
            await provider.acquire(session)
        assert not engine.has_container(session)
        assert "could not be set up" in (await provider.check() or "")


async def test_installations_share_a_network_only_with_equal_egress(
    engine: EngineSandbox, provider: DockerSandboxes
) -> None:
    other = {"installation": f"{engine.installation}-other", "name_prefix": f"{engine.prefix}o"}
    async with engine.provider(egress="none", **other) as different:
        with pytest.raises(SandboxUnavailable, match=r"another installation.*SANDBOX_NETWORK"):
            await different.acquire(engine.new_session())
        assert "with another SANDBOX_EGRESS" in (await different.check() or "")
    async with engine.provider(**other) as equal:
        assert await equal.check() is None
    assert await provider.check() is None


async def test_foreign_network_of_the_same_name_is_not_used(engine: EngineSandbox) -> None:
    name = f"{engine.network}-foreign"
    engine.api.create_network(name)
    try:
        async with engine.provider(network=name) as provider:
            assert "has another purpose" in (await provider.check() or "")
            with pytest.raises(SandboxUnavailable, match="has another purpose"):
                await provider.acquire(engine.new_session())
    finally:
        engine.api.remove_network(name)


async def test_changed_egress_applies_to_sandboxes_started_before(
    engine: EngineSandbox, external: ExternalNetwork
) -> None:
    name, session = f"{engine.network}-changed", engine.new_session()
    async with engine.provider(network=name) as provider:
        first = await provider.acquire(session)
        await write(first, "kept.txt", "still here")
        assert await fetch(first, f"http://{external.allowed}/") != ""
    async with engine.provider(network=name, egress="none") as provider:
        second = await provider.acquire(session)
        assert second.instance_id != first.instance_id
        assert await read(second, "kept.txt") == "still here"
        assert await fetch(second, f"http://{external.allowed}/") == ""
        await provider.destroy(session)


async def test_service_in_container_joins_network_and_only_it_reaches_sandboxes(
    engine: EngineSandbox, external: ExternalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{engine.network}-joined"
    config = engine.api.create_host_config()
    server = ["python3", "-m", "http.server", "8000"]
    made = engine.api.create_container(IMAGE, entrypoint=server, host_config=config, name=f"{engine.prefix}-backend")
    backend = made["Id"]
    engine.api.start(backend)
    monkeypatch.setattr(firewall, "_own_container_ids", lambda: ["0" * 64, backend])
    try:
        async with engine.provider(network=name, egress="none") as provider:
            assert await provider.check() is None
            joined = engine.api.inspect_container(backend)["NetworkSettings"]["Networks"][name]
            session = engine.new_session()
            sandbox = await provider.acquire(session)
            url = sandbox.browser.url.removesuffix("/cdp")
            request = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"]
            assert inside(engine, backend, [*request, f"{url}/api/v1/status"]) == "401"
            await serve(sandbox, 9000)
            assert inside(engine, backend, [*request, url.replace(f":{SANDBOX_PORT}", ":9000")]) == "000"
            assert (await run(sandbox, f"curl -s --max-time 5 http://{joined['IPAddress']}:8000/"))[0] == 7
            # The rules do not restrict the service itself, whichever bridge its default route uses now.
            assert inside(engine, backend, [*request, f"http://{external.allowed}/"]) == "200"
            # Other containers in the network cannot reach sandboxes.
            made = engine.api.create_container(IMAGE, entrypoint=["sleep", "60"], name=f"{engine.prefix}-stranger")
            stranger = made["Id"]
            engine.api.connect_container_to_network(stranger, name)
            engine.api.start(stranger)
            try:
                assert inside(engine, stranger, [*request, f"{url}/api/v1/status"]) == "000"
            finally:
                engine.api.remove_container(stranger, force=True)
            await provider.destroy(session)
        # A restarted service is in the network already.
        async with engine.provider(network=name, egress="none") as provider:
            assert await provider.check() is None
    finally:
        engine.api.remove_container(backend, force=True)


def rules(engine: EngineSandbox) -> list[str]:
    """Return the firewall rules for this run's network, but none for single networks: the host's may change."""
    suffix = engine.bridge.removeprefix("anker-")
    lines = [line for line in engine.saved_rules().splitlines() if suffix in line and line.startswith("-A")]
    return [line for line in lines if f"-A ANKER-F-{suffix} -d " not in line]


async def test_own_container_is_found_inside_it_and_not_on_the_host(engine: EngineSandbox, sandbox: Sandbox) -> None:
    _, mounts = await run(sandbox, "cat /proc/self/mountinfo")
    assert set(firewall._OWN_MOUNT.findall(mounts)) == {sandbox.instance_id}
    if own := firewall._own_container_ids():  # these tests may run in a container
        assert sandbox.instance_id not in own


def inside(engine: EngineSandbox, container: str, command: list[str]) -> str:
    """Run a command in a container and return its output."""
    return engine.api.exec_start(engine.api.exec_create(container, command)["Id"]).decode()


def iptables(*arguments: str) -> None:
    """Change the host's firewall rules."""
    subprocess.run(["iptables", "-w", "5", *arguments], check=True, capture_output=True)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=5).close()
        return True
    return False
