"""The firewall script with both variants of iptables, in a network namespace of its own."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from app.infrastructure.sandbox.docker.network.egress import FirewallRules, parse_egress
from app.infrastructure.sandbox.docker.network.firewall import NO_CHAIN_STATUS
from tests.integration.docker.engine_sandbox import ROOT

RULES = FirewallRules(
    network="n",
    egress=parse_egress("10.1.2.3 192.0.2.0/24"),
    subnets=("172.30.0.0/16",),
    services=("172.30.0.9",),
    other_subnets=("198.51.100.0/24",),
)
SCRIPT = ROOT / "app" / "infrastructure" / "sandbox" / "docker" / "network" / "firewall.sh"
JUMPS = [
    f"-A INPUT -i {RULES.bridge} -j {RULES.input_chain}",
    f"-A DOCKER-USER -i {RULES.bridge} -j {RULES.forward_chain}",
]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_inside() -> Iterator[Run]:
    """A function that runs a command in a new network namespace."""
    if os.geteuid() != 0 or not shutil.which("iptables-legacy"):
        pytest.skip("needs root and iptables")
    name = f"anker-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inside = ["ip", "netns", "exec", name, *command]
        return subprocess.run(inside, env={**os.environ, **variables}, capture_output=True, text=True)

    yield run
    subprocess.run(["ip", "netns", "del", name], check=True)


def run_script(run_inside: Run, action: str) -> subprocess.CompletedProcess[str]:
    chains = {
        "FORWARD_CHAIN": RULES.forward_chain,
        "INPUT_CHAIN": RULES.input_chain,
        "REJECT_CHAIN": RULES.reject_chain,
    }
    variables = {"ACTION": action, "BRIDGE": RULES.bridge, "TABLE": RULES.table(), **chains}
    return run_inside("sh", "-c", SCRIPT.read_text(), **variables)


def saved_rules(run_inside: Run, variant: str) -> list[str]:
    lines = run_inside(f"iptables-{variant}-save", "-t", "filter").stdout.splitlines()
    return [line for line in lines if line.startswith("-A")]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_script_puts_jumps_first_and_removes_all_its_rules(run_inside: Run, variant: str) -> None:
    iptables = f"iptables-{variant}"
    assert run_script(run_inside, "apply").returncode == NO_CHAIN_STATUS
    run_inside(iptables, "-N", "DOCKER-USER")
    run_inside(iptables, "-A", "DOCKER-USER", "-j", "RETURN")
    run_inside("ip", "addr", "add", "6.7.8.9/24", "dev", "lo")
    run_inside("ip", "addr", "add", "6.9.0.1", "peer", "6.9.0.2", "dev", "lo")
    before = saved_rules(run_inside, variant)
    assert run_script(run_inside, "apply").stdout == "done\n"
    rules = saved_rules(run_inside, variant)
    assert {*JUMPS, f"-A {RULES.forward_chain} -d 10.1.2.3/32 -j RETURN"} <= set(rules)
    for network in ("6.7.8.0/24", "6.9.0.1/32", "6.9.0.2/32"):
        assert f"-A {RULES.forward_chain} -d {network} -j {RULES.reject_chain}" in rules
    assert run_script(run_inside, "apply").returncode == 0 and saved_rules(run_inside, variant) == rules
    # An unrelated rule before our jumps is moved behind them; a jump of another sandbox network may stay.
    run_inside(iptables, "-I", "DOCKER-USER", "1", "-s", "192.0.2.1", "-j", "ACCEPT")
    run_inside(iptables, "-N", "ANKER-F-other")
    run_inside(iptables, "-I", "INPUT", "1", "-i", "other", "-j", "ANKER-F-other")
    assert run_script(run_inside, "apply").returncode == 0
    jumps = [line for line in saved_rules(run_inside, variant) if line.split()[1] in ("INPUT", "DOCKER-USER")]
    assert jumps == [
        "-A INPUT -i other -j ANKER-F-other",
        *JUMPS,
        "-A DOCKER-USER -s 192.0.2.1/32 -j ACCEPT",
        "-A DOCKER-USER -j RETURN",
    ]
    run_inside(iptables, "-D", "DOCKER-USER", "-s", "192.0.2.1", "-j", "ACCEPT")
    run_inside(iptables, "-D", "INPUT", "-i", "other", "-j", "ANKER-F-other")
    for _ in range(2):
        assert run_script(run_inside, "remove").returncode == 0
        assert saved_rules(run_inside, variant) == before
