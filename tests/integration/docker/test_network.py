"""Where sandboxes can go: tried from inside, against servers that answer this machine at the very same addresses."""

import asyncio
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
from app.infrastructure.sandbox.docker import network
from app.infrastructure.sandbox.docker.egress import parse_egress
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from app.infrastructure.sandbox.docker.spec import PORT
from tests.integration.docker.site import IMAGE, Site, guard_of, run
from tests.integration.docker.world import World, answers

pytestmark = pytest.mark.asyncio(loop_scope="session")

METADATA_SPELLINGS = (
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
    """What a sandbox gets from `url`, redirects followed; "" when it gets nothing."""
    code, output = await run(sandbox, f"curl -sgL --max-time 10 --noproxy '*' '{url}'")
    return "" if code else output


async def serve(sandbox: Sandbox, port: int) -> None:
    """Have a web server run in the sandbox."""
    await sandbox.shell_exec("server", "", f"python3 -m http.server {port} >/dev/null 2>&1 &")
    asked = f"curl -s --retry 50 --retry-connrefused --retry-delay 1 http://127.0.0.1:{port}/ >/dev/null"
    assert (await run(sandbox, asked))[0] == 0


async def test_an_open_sandbox_reaches_the_world_and_nothing_private(box: Sandbox, beyond: World) -> None:
    assert await fetch(box, f"http://{beyond.allowed}/") == f"this is {beyond.allowed}"
    assert await fetch(box, f"http://{beyond.forbidden}/") == f"this is {beyond.forbidden}"
    assert answers(beyond.private) and await fetch(box, f"http://{beyond.private}/") == ""


@pytest.mark.parametrize("spelling", METADATA_SPELLINGS)
async def test_the_metadata_address_is_out_of_reach_however_it_is_written(
    box: Sandbox, beyond: World, spelling: str
) -> None:
    assert answers(beyond.metadata)
    assert await fetch(box, f"http://{spelling}/") == ""


async def test_a_redirect_leads_nowhere_that_is_closed(box: Sandbox, beyond: World) -> None:
    assert await fetch(box, beyond.redirect(f"http://{beyond.forbidden}/")) == f"this is {beyond.forbidden}"
    for target in (beyond.metadata, beyond.private, "2852039166"):
        code, _ = await run(box, f"curl -sgL --max-time 10 '{beyond.redirect(f'http://{target}/')}'")
        assert code == 7  # it went there, and could not connect


async def test_what_is_closed_is_refused_at_once_by_tcp_and_by_udp(box: Sandbox, beyond: World) -> None:
    script = (
        "import socket, time\n"
        f"for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    begun, s = time.monotonic(), socket.socket(socket.AF_INET, kind)\n"
        "    s.settimeout(5)\n"
        "    try:\n"
        f"        s.connect(('{beyond.private}', 80)); s.send(b'x'); s.recv(1)\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__, time.monotonic() - begun < 3)\n"
    )
    await box.file_write("refused.py", script, append=False, sudo=False)
    assert await run(box, "python3 refused.py") == (0, "ConnectionRefusedError True\nOSError True\n")


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a server on all of this machine's addresses, as a careless operator runs one."""

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


async def test_the_ports_of_the_host_are_closed_at_each_of_its_addresses(
    here: Site, box: Sandbox, beyond: World, listener: int
) -> None:
    gateway = here.api.inspect_network(here.network)["IPAM"]["Config"][0]["Gateway"]
    listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    addresses = {gateway, beyond.host, *(each for each in listed if ":" not in each)}
    assert {gateway, beyond.host} <= {each for each in addresses if answers(f"{each}:{listener}")}
    for address in addresses:
        assert await fetch(box, f"http://{address}:{listener}/") == "", address
    six = [each for each in listed if ":" in each]
    for address in six:
        assert await fetch(box, f"http://[{address}]:{listener}/") == "", address


async def test_a_port_that_another_container_publishes_is_closed_too(here: Site, box: Sandbox, beyond: World) -> None:
    server = "import http.server as s; s.test(s.SimpleHTTPRequestHandler, port=8000)"
    config = here.api.create_host_config(port_bindings={8000: None})
    name = f"{here.prefix}-published"
    made = here.api.create_container(
        IMAGE, entrypoint=["python3", "-c", server], name=name, ports=[8000], host_config=config, working_dir="/srv"
    )
    try:
        here.api.start(made)
        told = here.api.inspect_container(name)["NetworkSettings"]
        port, own = told["Ports"]["8000/tcp"][0]["HostPort"], told["IPAddress"]
        await _listening(beyond.host, int(port))
        for place in (f"{beyond.host}:{port}", f"{own}:8000", f"172.17.0.1:{port}"):
            assert await fetch(box, f"http://{place}/") == "", place
    finally:
        here.api.remove_container(name, force=True)


async def test_a_sandbox_cannot_reach_another(here: Site, service: DockerSandboxes, box: Sandbox) -> None:
    session = here.session()
    other = await service.acquire(session)
    address = here.address(session)
    assert other.browser.url.startswith(f"http://{address}:{PORT}/")
    assert (await run(box, f"curl -sS --max-time 5 http://{address}:{PORT}/api/v1/status"))[0] == 7
    await serve(other, 9000)
    assert (await run(box, f"curl -sS --max-time 5 http://{address}:9000/"))[0] == 7
    await service.destroy(session)


async def test_names_are_found_where_egress_is_open_and_ipv6_is_off(box: Sandbox) -> None:
    assert (await run(box, "cat /proc/sys/net/ipv6/conf/all/disable_ipv6"))[1].strip() in ("1", "")
    assert (await run(box, "cat /proc/net/if_inet6"))[1].strip() == ""
    assert "timeout:1" not in (await run(box, "cat /etc/resolv.conf"))[1]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shut(here: Site) -> AsyncIterator[Sandbox]:
    """A sandbox with egress `none`."""
    async with here.provider(egress="none", network=f"{here.network}-none") as provider:
        session = here.session()
        yield await provider.acquire(session)
        await provider.destroy(session)


async def test_with_egress_none_nothing_is_reached_and_no_name_is_looked_up(shut: Sandbox, beyond: World) -> None:
    for address in (beyond.allowed, beyond.forbidden, beyond.private, beyond.metadata):
        assert answers(address) and await fetch(shut, f"http://{address}/") == ""
    assert (await run(shut, "timeout 10 getent hosts anything.example"))[0] == 2
    with open("/etc/resolv.conf") as file:
        resolvers = [line.split()[1] for line in file if line.startswith("nameserver")]
    ask = 'python3 -c "import socket,sys; s=socket.create_connection((sys.argv[1], 53), 5)" '
    for resolver in (*resolvers, beyond.allowed):
        assert (await run(shut, ask + resolver))[0] == 1


ALLOWED, INWARD, LATER = "allowed.test", "inward.test", "later.test"


@pytest.fixture
def names(beyond: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the service's resolver answers for names that end in `.test`."""
    known: dict[str, list[str]] = {ALLOWED: [beyond.allowed], INWARD: [beyond.private, beyond.metadata], LATER: []}
    real = asyncio.BaseEventLoop.getaddrinfo

    async def lookup(self: asyncio.BaseEventLoop, host: str, port: Any, **more: Any) -> Any:
        if not host.endswith(".test"):
            return await real(self, host, port, **more)
        if not known[host]:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    return known


async def test_with_a_list_of_hosts_their_addresses_are_reached_and_no_others(
    here: Site, beyond: World, names: dict[str, list[str]]
) -> None:
    egress = parse_egress(f"{ALLOWED}, {INWARD}, {LATER}")
    async with here.provider(egress=egress, network=f"{here.network}-list") as provider:
        session = here.session()
        sandbox = await provider.acquire(session)
        assert await fetch(sandbox, f"http://{ALLOWED}/") == f"this is {beyond.allowed}"
        assert await fetch(sandbox, f"http://{beyond.allowed}/") == f"this is {beyond.allowed}"
        # A name may not open what is private: whoever answers for it would decide what is.
        for place in (beyond.forbidden, beyond.private, beyond.metadata, INWARD, "2852039166"):
            assert await fetch(sandbox, f"http://{place}/") == "", place
        assert await fetch(sandbox, beyond.redirect(f"http://{beyond.forbidden}/")) == ""
        assert (await run(sandbox, "timeout 10 getent hosts anything.example"))[0] == 2

        # A name that moves takes its sandboxes along, without a restart.
        names[LATER].append(beyond.forbidden)
        names[ALLOWED].clear()
        await provider.reap()
        assert await fetch(sandbox, f"http://{beyond.forbidden}/") == f"this is {beyond.forbidden}"
        assert await fetch(sandbox, f"http://{ALLOWED}/") == f"this is {beyond.allowed}"
        await provider.destroy(session)


async def test_an_address_that_is_listed_by_its_number_is_reached_even_where_it_is_private(
    here: Site, beyond: World
) -> None:
    egress = parse_egress(f"{beyond.private} {beyond.forbidden}/32")
    async with here.provider(egress=egress, network=f"{here.network}-number") as provider:
        session = here.session()
        sandbox = await provider.acquire(session)
        assert await fetch(sandbox, f"http://{beyond.private}/") == f"this is {beyond.private}"
        assert await fetch(sandbox, f"http://{beyond.forbidden}/") == f"this is {beyond.forbidden}"
        assert await fetch(sandbox, f"http://{beyond.allowed}/") == ""
        await provider.destroy(session)


async def test_rules_that_somebody_removed_or_overrode_are_put_back(
    here: Site, service: DockerSandboxes, box: Sandbox, beyond: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = f"ANKER-F-{here.bridge.removeprefix('anker-')}"
    jump = ["-i", here.bridge, "-j"]
    before = rules(here)
    iptables("-I", "DOCKER-USER", "1", *jump, "ACCEPT")
    try:
        assert await fetch(box, f"http://{beyond.private}/") != ""
        await guard_of(service).refresh()  # nothing tells that anything is wrong, and it was looked after just now
        monkeypatch.setattr("app.infrastructure.sandbox.docker.guard.CHECK_SECONDS", 0.0)
        await service.reap()
        assert await fetch(box, f"http://{beyond.private}/") == ""
    finally:
        iptables("-D", "DOCKER-USER", *jump, "ACCEPT")
    iptables("-F", chain)
    iptables("-D", "INPUT", *jump, chain.replace("-F-", "-I-"))
    assert await fetch(box, f"http://{beyond.private}/") != ""
    await service.reap()
    assert await fetch(box, f"http://{beyond.private}/") == ""
    assert rules(here) == before


async def test_without_a_guard_there_is_no_sandbox(here: Site) -> None:
    # An image without iptables cannot guard.
    async with here.provider(image="debian:bookworm-slim", network=f"{here.network}-bare") as provider:
        session = here.session()
        with pytest.raises(SandboxUnavailable, match="cannot be kept from"):
            await provider.acquire(session)
        assert here.container(session) is None
        assert "cannot be kept from" in (await provider.check() or "")


async def test_two_installations_share_a_network_only_when_their_sandboxes_may_do_the_same(
    here: Site, service: DockerSandboxes
) -> None:
    other = {"installation": f"{here.installation}-other", "name_prefix": f"{here.prefix}o"}
    async with here.provider(egress="none", **other) as provider:
        with pytest.raises(SandboxUnavailable, match=r"another installation.*SANDBOX_NETWORK"):
            await provider.acquire(here.session())
        assert "SANDBOX_EGRESS is 'open'" in (await provider.check() or "")
    async with here.provider(**other) as provider:
        assert await provider.check() is None
    assert await service.check() is None


async def test_a_network_that_was_made_for_something_else_is_not_used(here: Site) -> None:
    name = f"{here.network}-foreign"
    here.api.create_network(name)
    try:
        async with here.provider(network=name) as provider:
            assert "made for something else" in (await provider.check() or "")
            with pytest.raises(SandboxUnavailable, match="made for something else"):
                await provider.acquire(here.session())
    finally:
        here.api.remove_network(name)


async def test_another_egress_is_in_force_for_sandboxes_that_were_started_before(here: Site, beyond: World) -> None:
    name, session = f"{here.network}-changed", here.session()
    async with here.provider(network=name) as provider:
        first = await provider.acquire(session)
        await first.file_write("kept.txt", "still here", append=False, sudo=False)
        assert await fetch(first, f"http://{beyond.allowed}/") != ""
    async with here.provider(network=name, egress="none") as provider:
        second = await provider.acquire(session)
        assert second.instance_id != first.instance_id
        assert await run(second, "cat kept.txt") == (0, "still here")
        assert await fetch(second, f"http://{beyond.allowed}/") == ""
        await provider.destroy(session)


async def test_a_service_in_a_container_joins_the_network_and_reaches_sandboxes_alone(
    here: Site, beyond: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{here.network}-joined"
    config = here.api.create_host_config()
    run_for_ever = ["python3", "-m", "http.server", "8000"]
    made = here.api.create_container(IMAGE, entrypoint=run_for_ever, host_config=config, name=f"{here.prefix}-backend")
    backend = made["Id"]
    here.api.start(backend)
    monkeypatch.setattr(network, "_own_names", lambda: ["0" * 64, backend])
    try:
        async with here.provider(network=name, egress="none") as provider:
            assert await provider.check() is None
            joined = here.api.inspect_container(backend)["NetworkSettings"]["Networks"][name]
            session = here.session()
            sandbox = await provider.acquire(session)
            url = sandbox.browser.url.removesuffix("/cdp")
            ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"]
            assert inside(here, backend, [*ask, f"{url}/api/v1/status"]) == "401"
            await serve(sandbox, 9000)
            assert inside(here, backend, [*ask, url.replace(f":{PORT}", ":9000")]) == "000"
            assert (await run(sandbox, f"curl -s --max-time 5 http://{joined['IPAddress']}:8000/"))[0] == 7
            # The rules are for sandboxes: the service goes where it went before, whichever bridge leads there now.
            assert inside(here, backend, [*ask, f"http://{beyond.allowed}/"]) == "200"
            # Nobody else, not even one who is in the network.
            stranger = here.api.create_container(IMAGE, entrypoint=["sleep", "60"], name=f"{here.prefix}-stranger")[
                "Id"
            ]
            here.api.connect_container_to_network(stranger, name)
            here.api.start(stranger)
            try:
                assert inside(here, stranger, [*ask, f"{url}/api/v1/status"]) == "000"
            finally:
                here.api.remove_container(stranger, force=True)
            await provider.destroy(session)
        # Started once more it is in the network already.
        async with here.provider(network=name, egress="none") as provider:
            assert await provider.check() is None
    finally:
        here.api.remove_container(backend, force=True)


def rules(here: Site) -> list[str]:
    """The packet filter's rules for this site's network."""
    word = here.bridge.removeprefix("anker-")
    return [line for line in here.saved_rules().splitlines() if word in line and line.startswith("-A")]


async def test_a_container_knows_itself_and_a_host_full_of_containers_takes_itself_for_none(
    here: Site, box: Sandbox
) -> None:
    _, mounts = await run(box, "cat /proc/self/mountinfo")
    assert set(network._OWN_MOUNT.findall(mounts)) == {box.instance_id}
    if own := network._own_names():  # these tests may run in a container themselves
        assert box.instance_id not in own


def inside(here: Site, container: str, command: list[str]) -> str:
    """What a command says that runs in a container."""
    return here.api.exec_start(here.api.exec_create(container, command)["Id"]).decode()


def iptables(*arguments: str) -> None:
    """Change the host's packet filter behind the service's back."""
    subprocess.run(["iptables", "-w", "5", *arguments], check=True, capture_output=True)


async def _listening(host: str, port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
