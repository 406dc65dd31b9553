"""The parsing of settings, engine objects and engine errors, and the firewall rules. No engine is needed."""

from ipaddress import IPv4Address, ip_network

import pytest

from app.infrastructure.sandbox.docker.container_spec import parse_size
from app.infrastructure.sandbox.docker.engine import EngineRefused, ObjectConflict, ObjectNotFound, parse_refusal
from app.infrastructure.sandbox.docker.engine_objects import EngineContainer, EngineNetwork
from app.infrastructure.sandbox.docker.network.egress import (
    HOST_NETWORKS,
    EgressAllowlist,
    FirewallRules,
    bridge_name,
    parse_egress,
)


@pytest.mark.parametrize("text", ["open", " Open ", "OPEN"])
def test_parse_egress_open_in_any_case_returns_open(text: str) -> None:
    assert parse_egress(text) == "open"


def test_parse_egress_list_returns_canonical_allowlist() -> None:
    assert parse_egress("none") == "none"
    listed = parse_egress("Pypi.example, 192.0.2.7 192.0.2.0/24,10.1.2.3,files.pypi.example.")
    assert isinstance(listed, EgressAllowlist)
    assert listed.hosts == ("files.pypi.example", "pypi.example")
    assert str(listed) == "files.pypi.example,pypi.example,10.1.2.3,192.0.2.0/24,192.0.2.7"
    again = parse_egress("192.0.2.7/32 192.0.2.0/24 10.1.2.3 files.pypi.example pypi.example pypi.example")
    assert str(again) == str(listed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "open, none, or a list"),
        (" , ", "open, none, or a list"),
        ("*.example.com", "full name"),
        ("example.*", "full name"),
        ("https://example.com", "without scheme"),
        ("example.com/path", "without scheme"),
        ("example.com:443", "without scheme"),
        ("192.0.2.7:443", "without scheme"),
        ("192.0.2.7/24", "must be an address"),
        ("192.0.2", "must be an address"),
        ("3221225991", "must be an address"),
        ("0xc0.0.2.7", "must be an address"),
        ("192.0.2.0x7", "must be an address"),
        ("2001:db8::1", "no IPv6"),
        ("169.254.169.254", "closed to every sandbox"),
        ("169.254.0.0/16", "closed to every sandbox"),
        ("127.0.0.1", "closed to every sandbox"),
        ("224.0.0.1", "closed to every sandbox"),
        ("0.0.0.0", "closed to every sandbox"),
        ("localhost", "not the name"),
        ("exa mple.com none", "must be the only entry"),
        ("example.com, open", "must be the only entry"),
        ("-bad.example", "not the name"),
        ("a..b", "not the name"),
        ("x" * 64 + ".example", "not the name"),
    ],
)
def test_parse_egress_unenforceable_entry_raises_with_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_egress(text)


def _rules(rules: FirewallRules, chain: str) -> list[str]:
    start = f"-A {chain} "
    return [line.removeprefix(start) for line in rules.table().splitlines() if line.startswith(start)]


def _target(rules: list[str], address: str) -> str:
    """Return the target of the first rule that applies to every new packet to `address`."""
    for rule in rules:
        parts = rule.split()
        if parts[:2] == ["-d", HOST_NETWORKS]:
            continue
        if parts[0] == "-d" and "--dport" not in parts and IPv4Address(address) in ip_network(parts[1]):
            return parts[parts.index("-j") + 1]
        if parts[0] == "-j":
            return parts[1]
    raise AssertionError("the last rule of a chain must apply to every packet")


PRIVATE_ADDRESSES = (
    *("10.9.9.9", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1"),
    *("192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1", "198.51.100.1", "203.0.113.1"),
)
FORBIDDEN_ADDRESSES = (
    *("169.254.169.254", "127.0.0.1", "0.1.2.3", "224.0.0.251", "240.0.0.1", "255.255.255.255"),
    *("192.0.0.8", "192.0.0.192", "100.100.100.200", "168.63.129.16"),
)


def test_open_egress_rejects_private_addresses_and_allows_public_ones() -> None:
    firewall = FirewallRules(network="n", egress="open", subnets=("172.30.0.0/16",), other_subnets=("6.6.6.0/24",))
    rules = _rules(firewall, firewall.forward_chain)
    for address in (*PRIVATE_ADDRESSES, *FORBIDDEN_ADDRESSES, "6.6.6.9"):
        assert _target(rules, address) == firewall.reject_chain
    assert _target(rules, "6.213.0.1") == "RETURN"
    assert _rules(firewall, firewall.input_chain)[-1] == f"-j {firewall.reject_chain}"


def test_listed_network_that_contains_private_networks_does_not_open_them() -> None:
    listed = parse_egress("0.0.0.0/0")
    firewall = FirewallRules(network="n", egress=listed, subnets=("172.30.0.0/16",))
    rules = _rules(firewall, firewall.forward_chain)
    for address in (*PRIVATE_ADDRESSES, *FORBIDDEN_ADDRESSES):
        assert _target(rules, address) == firewall.reject_chain
    assert _target(rules, "6.213.0.1") == "RETURN"


def test_allowlist_opens_listed_addresses_only() -> None:
    listed = parse_egress("10.9.9.0/24 allowed.example")
    firewall = FirewallRules(
        network="n", egress=listed, subnets=("172.30.0.0/16",), addresses=(IPv4Address("6.213.0.1"),)
    )
    rules = _rules(firewall, firewall.forward_chain)
    assert (_target(rules, "10.9.9.9"), _target(rules, "6.213.0.1")) == ("RETURN", "RETURN")
    for address in ("10.9.8.9", "6.213.0.2", *FORBIDDEN_ADDRESSES):
        assert _target(rules, address) == firewall.reject_chain


def test_listed_networks_do_not_open_forbidden_addresses() -> None:
    listed = parse_egress("100.64.0.0/10 10.0.0.0/8")
    firewall = FirewallRules(network="n", egress=listed, subnets=("172.30.0.0/16",))
    rules = _rules(firewall, firewall.forward_chain)
    assert (_target(rules, "100.64.0.1"), _target(rules, "10.0.0.1")) == ("RETURN", "RETURN")
    for address in FORBIDDEN_ADDRESSES:
        assert _target(rules, address) == firewall.reject_chain


def test_dns_is_allowed_with_open_egress_only() -> None:
    for egress, count in (("open", 2), ("none", 0), (parse_egress("a.example"), 0)):
        firewall = FirewallRules(network="n", egress=egress, subnets=(), resolvers=("10.0.0.53",))  # type: ignore[arg-type]
        assert sum("--dport 53" in rule for rule in _rules(firewall, firewall.forward_chain)) == count


def test_names_of_bridges_and_chains_are_unique_and_short_enough() -> None:
    firewalls = [FirewallRules(network=name, egress="open") for name in ("a", "b", "x" * 200)]
    names = [
        name for each in firewalls for name in (each.bridge, each.forward_chain, each.input_chain, each.reject_chain)
    ]
    assert len(set(names)) == len(names)
    assert all(len(bridge_name(each.network)) <= 15 and len(each.forward_chain) <= 28 for each in firewalls)


@pytest.mark.parametrize(
    ("text", "size"), [("1g", 1 << 30), ("512m", 512 << 20), ("1.5G", 3 << 29), ("64MiB", 64 << 20), ("1000", 1000)]
)
def test_parse_size_returns_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "g", "1x", "-1g", "1 2g", "1e9"])
def test_parse_size_invalid_text_raises(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (500, "mkdir '/var/lib/docker/secret': no space left on device", EngineRefused),
        (404, "No such container: x", ObjectNotFound),
        (409, "Conflict. The container name is already in use", ObjectConflict),
        (500, "something new about /root/path", EngineRefused),
        (None, "", EngineRefused),
    ],
)
def test_parse_refusal_returns_error_without_the_engines_message(
    status: int | None, message: str, kind: type[Exception]
) -> None:
    failure = parse_refusal(status, message)
    assert type(failure) is kind and "/" not in str(failure) and len(str(failure)) > 20


def test_container_inspected_or_listed_is_parsed() -> None:
    network = {"NetworkSettings": {"Networks": {"n": {"IPAddress": "192.0.2.7", "Aliases": None}}}}
    inspected = EngineContainer.model_validate(
        {
            "Id": "1",
            "Name": "/box",
            "Created": "2026-05-01T12:00:00.123456789+02:00",
            "Config": {"Labels": {"a": "b"}, "Env": ["PATH=/bin", "SANDBOX_TOKEN=x=y"]},
            "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
            "Mounts": [{"Type": "bind", "Source": "/"}, {"Type": "volume", "Name": "v"}],
            **network,
        }
    )
    listed = EngineContainer.model_validate(
        {
            "Id": "1",
            "Names": ["/other/alias", "/box"],
            "Created": 1777629600,
            "Labels": None,
            "State": "exited",
            "Mounts": None,
            **network,
        }
    )
    assert (inspected.name, inspected.state, inspected.exit_code, inspected.token) == ("box", "exited", 137, "x=y")
    assert (inspected.labels, inspected.volumes, inspected.out_of_memory) == ({"a": "b"}, ("v",), True)
    assert (listed.name, listed.state, listed.labels, listed.volumes) == ("box", "exited", {}, ())
    assert inspected.created.replace(microsecond=0) == listed.created
    assert inspected.address("n") == listed.address("n") == "192.0.2.7"


def test_network_with_null_fields_is_parsed_as_empty() -> None:
    nothing = {"Labels": None, "Options": None, "Containers": None, "IPAM": {"Config": None}}
    network = EngineNetwork.model_validate({"Id": "1", "Name": "n", **nothing})
    assert (network.labels, network.options, network.members, network.subnets) == ({}, {}, (), ())
