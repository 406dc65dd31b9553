"""The guard's script with both kinds of iptables, in a network namespace where it can break nothing."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from app.infrastructure.sandbox.docker.egress import parse_egress
from app.infrastructure.sandbox.docker.guard import NO_CHAIN
from app.infrastructure.sandbox.docker.rules import Plan
from tests.integration.docker.site import ROOT

PLAN = Plan(
    network="n",
    egress=parse_egress("10.1.2.3 192.0.2.0/24"),
    subnets=("172.30.0.0/16",),
    services=("172.30.0.9",),
    others=("198.51.100.0/24",),
)
SCRIPT = ROOT / "app" / "infrastructure" / "sandbox" / "docker" / "guard.sh"
ENTRIES = [f"-A INPUT -i {PLAN.bridge} -j {PLAN.input}", f"-A DOCKER-USER -i {PLAN.bridge} -j {PLAN.forward}"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inside() -> Iterator[Run]:
    """Runs a command in a namespace of its own."""
    if os.geteuid() != 0 or not shutil.which("iptables-legacy"):
        pytest.skip("needs root and iptables")
    name = f"anker-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        words = ["ip", "netns", "exec", name, *command]
        return subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True)

    yield run
    subprocess.run(["ip", "netns", "del", name], check=True)


def guard(inside: Run, action: str) -> subprocess.CompletedProcess[str]:
    names = {"BRIDGE": PLAN.bridge, "FORWARD": PLAN.forward, "INPUT": PLAN.input, "REFUSAL": PLAN.refusal}
    return inside("sh", "-c", SCRIPT.read_text(), ACTION=action, TABLE=PLAN.table(), **names)


def saved(inside: Run, kind: str) -> list[str]:
    lines = inside(f"iptables-{kind}-save", "-t", "filter").stdout.splitlines()
    return [line for line in lines if line.startswith("-A")]


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_rules_are_put_where_the_engine_has_its_own_and_come_first(inside: Run, kind: str) -> None:
    iptables = f"iptables-{kind}"
    assert guard(inside, "apply").returncode == NO_CHAIN
    inside(iptables, "-N", "DOCKER-USER")
    inside(iptables, "-A", "DOCKER-USER", "-j", "RETURN")
    bare = saved(inside, kind)
    assert guard(inside, "apply").stdout == "guarded\n"
    rules = saved(inside, kind)
    assert {*ENTRIES, f"-A {PLAN.forward} -d 10.1.2.3/32 -j RETURN"} <= set(rules)
    assert guard(inside, "apply").returncode == 0 and saved(inside, kind) == rules
    # Somebody's rule that would go first, and one of another network's guard, which may.
    inside(iptables, "-I", "DOCKER-USER", "1", "-s", "192.0.2.1", "-j", "ACCEPT")
    inside(iptables, "-N", "ANKER-F-other")
    inside(iptables, "-I", "INPUT", "1", "-i", "other", "-j", "ANKER-F-other")
    assert guard(inside, "apply").returncode == 0
    entries = [line for line in saved(inside, kind) if line.split()[1] in ("INPUT", "DOCKER-USER")]
    assert entries == [
        "-A INPUT -i other -j ANKER-F-other",
        *ENTRIES,
        "-A DOCKER-USER -s 192.0.2.1/32 -j ACCEPT",
        "-A DOCKER-USER -j RETURN",
    ]
    inside(iptables, "-D", "DOCKER-USER", "-s", "192.0.2.1", "-j", "ACCEPT")
    inside(iptables, "-D", "INPUT", "-i", "other", "-j", "ANKER-F-other")
    for _ in range(2):
        assert guard(inside, "remove").returncode == 0
        assert saved(inside, kind) == bare
