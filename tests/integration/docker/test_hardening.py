"""The configuration of a running sandbox container, as the engine reports it, with default options."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from tests.integration.docker.engine_sandbox import EngineSandbox, run

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1024 * 1024
GIB = 1024 * MIB


@pytest.fixture
def inspected(engine: EngineSandbox, sandbox: Sandbox) -> dict[str, Any]:
    return engine.api.inspect_container(sandbox.instance_id)


async def test_container_gets_no_devices_mounts_or_namespaces_of_the_host(
    inspected: dict[str, Any], engine: EngineSandbox
) -> None:
    host, config = inspected["HostConfig"], inspected["Config"]
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert {each.removeprefix("CAP_") for each in host["CapAdd"]} == {"CHOWN", "KILL", "SETGID", "SETUID"}
    assert not host["Binds"] and not host["Devices"] and not host["VolumesFrom"] and not host["Links"]
    assert [(each["Type"], each["Destination"]) for each in inspected["Mounts"]] == [("volume", "/home/ubuntu")]
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"], host["IpcMode"]) == ("", "", "", "private")
    assert host["CgroupnsMode"] == "private"
    assert host["NetworkMode"] == engine.network
    assert list(inspected["NetworkSettings"]["Networks"]) == [engine.network]
    assert not any(inspected["NetworkSettings"]["Ports"].values()) and not host["PublishAllPorts"]
    assert host["Sysctls"]["net.ipv6.conf.all.disable_ipv6"] == "1"
    assert (config["User"], config["Hostname"]) == ("0", "sandbox")


async def test_container_has_no_new_privileges_and_the_seccomp_profile(inspected: dict[str, Any]) -> None:
    options = inspected["HostConfig"]["SecurityOpt"]
    assert "no-new-privileges" in options
    (profile,) = [json.loads(each.removeprefix("seccomp=")) for each in options if each.startswith("seccomp=")]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


async def test_container_has_limits_for_every_resource(inspected: dict[str, Any]) -> None:
    host = inspected["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == GIB
    assert (host["NanoCpus"], host["PidsLimit"], host["ShmSize"]) == (1_000_000_000, 1024, 256 * MIB)
    assert set(host["Tmpfs"]) == {"/tmp", "/run", "/run/anker", "/var/tmp"}
    for options in host["Tmpfs"].values():
        assert {"nosuid", "nodev"} <= set(options.split(",")) and "size=" in options
    limits = {each["Name"]: (each["Soft"], each["Hard"]) for each in host["Ulimits"]}
    assert limits["core"] == (0, 0) and limits["nofile"] == (8192, 8192) and limits["fsize"][1] == 8 * GIB
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
    assert host["RestartPolicy"]["Name"] in ("", "no")


async def test_kernel_kills_the_agents_programs_before_browser_and_program(sandbox: Sandbox) -> None:
    # The order in which the kernel kills when memory runs out (see proc(5)).
    assert await run(sandbox, "cat /proc/self/oom_score_adj /proc/1/oom_score_adj") == (0, "500\n0\n")


async def test_container_and_volume_have_labels_and_every_container_its_own_token(
    engine: EngineSandbox, provider: DockerSandboxes, inspected: dict[str, Any]
) -> None:
    session = engine.new_session()
    await provider.acquire(session)
    expected = {"anker.session": session, "anker.installation": engine.installation, "anker.role": "sandbox"}
    assert expected.items() <= engine.inspect(session)["Config"]["Labels"].items()
    assert expected.items() <= engine.api.inspect_volume(engine.name(session))["Labels"].items()
    tokens = {_token(inspected), _token(engine.inspect(session))}
    assert all(len(token) >= 40 for token in tokens) and len(tokens) == 2
    await provider.destroy(session)


async def test_process_in_sandbox_has_no_capabilities_and_cannot_see_the_token(
    inspected: dict[str, Any], sandbox: Sandbox
) -> None:
    _, status = await run(sandbox, "cat /proc/self/status")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == ["1000"] * 4 and fields["Groups"].split() == ["1000"]
    assert all(int(fields[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")
    token = _token(inspected)
    assert token not in (await run(sandbox, "env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"))[1]
    assert token not in (await run(sandbox, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"))[1]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sudo_session(engine: EngineSandbox) -> AsyncIterator[tuple[str, Sandbox]]:
    """The session and the sandbox of an operator who allows sudo, on a small machine."""
    async with engine.provider(sudo=True, memory="768m", cpus=0.5) as provider:
        session = engine.new_session()
        yield session, await provider.acquire(session)
        await provider.destroy(session)


async def test_with_sudo_user_becomes_root_without_host_capabilities(
    engine: EngineSandbox, sudo_session: tuple[str, Sandbox]
) -> None:
    session, sandbox = sudo_session
    host = engine.inspect(session)["HostConfig"]
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


async def test_without_sudo_option_sudo_fails(sandbox: Sandbox) -> None:
    code, output = await run(sandbox, "sudo -n id")
    assert code != 0 and "no new privileges" in output


def _token(inspected: dict[str, Any]) -> str:
    (token,) = [each for each in inspected["Config"]["Env"] if each.startswith("SANDBOX_TOKEN=")]
    return token.removeprefix("SANDBOX_TOKEN=")
