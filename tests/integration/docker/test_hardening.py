"""How a live sandbox is made, as the engine tells it: all of it by default, with nothing set."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.site import Site, run

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1024 * 1024
GIB = 1024 * MIB


@pytest.fixture
def told(here: Site, box: Sandbox) -> dict[str, Any]:
    return here.api.inspect_container(box.instance_id)


async def test_nothing_of_the_host_is_handed_in(told: dict[str, Any], here: Site) -> None:
    host, config = told["HostConfig"], told["Config"]
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert not host["Binds"] and not host["Devices"] and not host["VolumesFrom"] and not host["Links"]
    assert [(each["Type"], each["Destination"]) for each in told["Mounts"]] == [("volume", "/home/ubuntu")]
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"], host["IpcMode"]) == ("", "", "", "private")
    assert host["CgroupnsMode"] == "private"
    assert host["NetworkMode"] == here.network and list(told["NetworkSettings"]["Networks"]) == [here.network]
    assert not any(told["NetworkSettings"]["Ports"].values()) and not host["PublishAllPorts"]
    assert host["Sysctls"]["net.ipv6.conf.all.disable_ipv6"] == "1"
    assert (config["User"], config["Hostname"]) == ("ubuntu", "sandbox")


async def test_no_program_gains_rights_and_every_system_call_is_filtered_by_our_profile(told: dict[str, Any]) -> None:
    options = told["HostConfig"]["SecurityOpt"]
    assert "no-new-privileges" in options
    (profile,) = [json.loads(each.removeprefix("seccomp=")) for each in options if each.startswith("seccomp=")]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


async def test_everything_that_can_be_used_up_is_bounded(told: dict[str, Any]) -> None:
    host = told["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == GIB
    assert (host["NanoCpus"], host["PidsLimit"], host["ShmSize"]) == (1_000_000_000, 1024, 256 * MIB)
    assert set(host["Tmpfs"]) == {"/tmp", "/run", "/var/tmp"}
    for options in host["Tmpfs"].values():
        assert {"nosuid", "nodev"} <= set(options.split(",")) and "size=" in options
    limits = {each["Name"]: (each["Soft"], each["Hard"]) for each in host["Ulimits"]}
    assert limits["core"] == (0, 0) and limits["nofile"] == (8192, 8192) and limits["fsize"][1] == 8 * GIB
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
    assert host["RestartPolicy"]["Name"] in ("", "no")


async def test_what_is_ours_can_be_told_by_its_labels(here: Site, service: DockerSandboxes) -> None:
    session = here.session()
    await service.acquire(session)
    wanted = {"anker.session": session, "anker.installation": here.installation, "anker.role": "sandbox"}
    assert wanted.items() <= here.inspect(session)["Config"]["Labels"].items()
    assert wanted.items() <= here.api.inspect_volume(here.name(session))["Labels"].items()
    tokens = {_token(here.inspect(each)) for each in (session, *here.sessions) if here.container(each)}
    assert all(len(token) >= 40 for token in tokens) and len(tokens) > 1
    await service.destroy(session)


async def test_what_runs_inside_has_no_rights_and_no_secrets(here: Site, box: Sandbox) -> None:
    _, status = await run(box, "cat /proc/self/status")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert all(int(fields[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")
    token = _token(here.api.inspect_container(box.instance_id))
    assert token not in (await run(box, "env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"))[1]
    assert token not in (await run(box, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"))[1]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def free(here: Site) -> AsyncIterator[tuple[str, Sandbox]]:
    """A sandbox of an operator who wants sudo, on a small machine."""
    options = {"sudo": True, "memory": "768m", "cpus": 0.5}
    async with here.provider(**options) as provider:
        session = here.session()
        yield session, await provider.acquire(session)
        await provider.destroy(session)


async def test_with_sudo_the_user_can_become_root_of_the_container_and_no_more(
    here: Site, free: tuple[str, Sandbox]
) -> None:
    session, sandbox = free
    host = here.inspect(session)["HostConfig"]
    assert not host["ReadonlyRootfs"] and not host["Privileged"] and host["CapDrop"] == ["ALL"]
    allowed = {each.removeprefix("CAP_") for each in host["CapAdd"]}
    assert not allowed & {"NET_RAW", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "MKNOD", "DAC_READ_SEARCH", "SYS_CHROOT"}
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (768 * MIB, 768 * MIB, 500_000_000)
    assert await run(sandbox, "sudo id -u") == (0, "0\n")
    assert await run(sandbox, "sudo touch /usr/local/mine && sudo chown ubuntu /usr/local/mine && echo done") == (
        0,
        "done\n",
    )
    for attempt in ("mount -t tmpfs none /mnt", "mknod /tmp/d b 1 1", "sysctl -w kernel.hostname=x", "iptables -L"):
        assert (await run(sandbox, f"sudo {attempt}"))[0] != 0, attempt


async def test_without_sudo_there_is_none(box: Sandbox) -> None:
    code, words = await run(box, "sudo -n id")
    assert code != 0 and "no new privileges" in words


def _token(told: dict[str, Any]) -> str:
    (token,) = [each for each in told["Config"]["Env"] if each.startswith("SANDBOX_TOKEN=")]
    return token.removeprefix("SANDBOX_TOKEN=")
