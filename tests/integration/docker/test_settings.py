"""What is made of the settings, and what the packet filter is told: no engine needed."""

from ipaddress import IPv4Address

import pytest

from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.egress import EgressList, parse_egress
from app.infrastructure.sandbox.docker.rules import Plan, bridge_name
from app.infrastructure.sandbox.docker.spec import parse_size


@pytest.mark.parametrize("text", ["open", " Open ", "OPEN"])
def test_egress_may_be_open(text: str) -> None:
    assert parse_egress(text) == "open"


def test_egress_may_be_none_or_a_list_in_any_order_and_spelling() -> None:
    assert parse_egress("none") == "none"
    listed = parse_egress("Pypi.example, 192.0.2.7 192.0.2.0/24,10.1.2.3,files.pypi.example.")
    assert isinstance(listed, EgressList)
    assert listed.hosts == ("files.pypi.example", "pypi.example")
    assert str(listed) == "files.pypi.example,pypi.example,10.1.2.3,192.0.2.0/24,192.0.2.7"
    again = parse_egress("192.0.2.7/32 192.0.2.0/24 10.1.2.3 files.pypi.example pypi.example pypi.example")
    assert str(again) == str(listed)


@pytest.mark.parametrize(
    ("text", "words"),
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
        ("exa mple.com none", "stands alone"),
        ("example.com, open", "stands alone"),
        ("-bad.example", "not the name"),
        ("a..b", "not the name"),
        ("x" * 64 + ".example", "not the name"),
    ],
)
def test_an_entry_that_cannot_be_enforced_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_egress(text)


def _rules(plan: Plan, chain: str) -> list[str]:
    start = f"-A {chain} "
    return [line.removeprefix(start) for line in plan.table().splitlines() if line.startswith(start)]


def _verdict(rules: list[str], address: str) -> str:
    """What the first rule that is about this address alone says; established connections and bridges are left out."""
    from ipaddress import ip_network

    for rule in rules:
        words = rule.split()
        if words[0] == "-d" and "--dport" not in words and IPv4Address(address) in ip_network(words[1]):
            return words[words.index("-j") + 1]
        if words[0] == "-j":
            return words[1]
    raise AssertionError("a chain ends with a rule for everything")


PRIVATE_PLACES = ("10.9.9.9", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1")
NEVER_PLACES = ("169.254.169.254", "127.0.0.1", "0.1.2.3", "224.0.0.251", "255.255.255.255")


def test_private_places_are_closed_and_the_world_is_open() -> None:
    plan = Plan(network="n", egress="open", subnets=("172.30.0.0/16",), others=("192.0.2.0/24",))
    rules = _rules(plan, plan.forward)
    for place in (*PRIVATE_PLACES, *NEVER_PLACES, "192.0.2.9"):
        assert _verdict(rules, place) == plan.refusal
    assert _verdict(rules, "203.0.113.1") == "RETURN"
    assert _rules(plan, plan.input)[-1] == f"-j {plan.refusal}"


def test_a_listed_network_that_holds_private_places_too_does_not_open_them() -> None:
    listed = parse_egress("0.0.0.0/0")
    plan = Plan(network="n", egress=listed, subnets=("172.30.0.0/16",))
    rules = _rules(plan, plan.forward)
    for place in (*PRIVATE_PLACES, *NEVER_PLACES):
        assert _verdict(rules, place) == plan.refusal
    assert _verdict(rules, "203.0.113.1") == "RETURN"


def test_only_what_is_listed_is_open_by_name_or_by_number() -> None:
    listed = parse_egress("10.9.9.0/24 allowed.example")
    plan = Plan(network="n", egress=listed, subnets=("172.30.0.0/16",), addresses=(IPv4Address("203.0.113.1"),))
    rules = _rules(plan, plan.forward)
    assert (_verdict(rules, "10.9.9.9"), _verdict(rules, "203.0.113.1")) == ("RETURN", "RETURN")
    for place in ("10.9.8.9", "203.0.113.2", *NEVER_PLACES):
        assert _verdict(rules, place) == plan.refusal


def test_names_are_looked_up_only_where_egress_is_open() -> None:
    for egress, count in (("open", 2), ("none", 0), (parse_egress("a.example"), 0)):
        plan = Plan(network="n", egress=egress, subnets=(), resolvers=("10.0.0.53",))  # type: ignore[arg-type]
        assert sum("--dport 53" in rule for rule in _rules(plan, plan.forward)) == count


def test_networks_get_bridges_and_chains_of_their_own_whose_names_fit() -> None:
    plans = [Plan(network=name, egress="open", subnets=()) for name in ("a", "b", "x" * 200)]
    names = [each for plan in plans for each in (plan.bridge, plan.forward, plan.input, plan.refusal)]
    assert len(set(names)) == len(names)
    assert all(len(bridge_name(plan.network)) <= 15 and len(plan.forward) <= 28 for plan in plans)


@pytest.mark.parametrize(
    ("text", "size"), [("1g", 1 << 30), ("512m", 512 << 20), ("1.5G", 3 << 29), ("64MiB", 64 << 20), ("1000", 1000)]
)
def test_a_size_is_understood(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "g", "1x", "-1g", "1 2g", "1e9"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


def test_what_the_engine_says_is_never_shown_and_always_means_something() -> None:
    said = "error while creating mount source path '/var/lib/docker/secret': mkdir: no space left on device"
    for status, words, kind in (
        (500, said, failures.Refused),
        (404, "No such container: x", failures.Missing),
        (409, "Conflict. The container name is already in use", failures.Taken),
        (500, "something new about /root/path", failures.Refused),
        (0, "", failures.Refused),
    ):
        failure = failures.refusal(status, words)
        assert type(failure) is kind and "/" not in str(failure) and len(str(failure)) > 20
