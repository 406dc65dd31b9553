"""Logins by tokens of the operator, and by a header of a reverse proxy."""

import logging
import os
from pathlib import Path

import pytest

from app.domain.errors import Unauthorized
from app.domain.external.authenticator import Credentials
from app.infrastructure.auth.proxy import ProxyLogin
from app.infrastructure.auth.tokens import MAX_FILE_BYTES, RELOAD_SECONDS, NoLogin, TokenLogin, new_token

ALICE, BOB = "alice-token-0123456789", "bob-token-0123456789"


def bearer(*tokens: str, scheme: str = "Bearer") -> Credentials:
    headers = [(b"authorization", f"{scheme} {token}".encode("latin-1")) for token in tokens]
    return Credentials(headers=headers, peer="192.0.2.1")


async def is_refused(login: TokenLogin | ProxyLogin, credentials: Credentials) -> bool:
    try:
        await login.authenticate(credentials)
    except Unauthorized as error:
        assert ALICE not in str(error)
        return True
    return False


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


async def test_token_of_the_setting_stands_for_its_name() -> None:
    login = TokenLogin(f"alice:{ALICE}, bob@example.org:{BOB}:with-colon")
    assert await login.authenticate(bearer(ALICE)) == "alice"
    assert await login.authenticate(bearer(ALICE, scheme="bEARER")) == "alice"
    assert await login.authenticate(bearer(f"{BOB}:with-colon")) == "bob@example.org"
    assert await login.is_known("alice")
    assert not await login.is_known("")
    for credentials in (
        Credentials(headers=[], peer=""),
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        bearer(f"alice:{ALICE}"),
        bearer("é" * 20),
        bearer("x" * 60_000),
        bearer(ALICE, scheme="Basic"),
        bearer(ALICE, BOB),
        bearer(ALICE, ALICE),
        Credentials(headers=[(b"authorization", ALICE.encode())], peer=""),
    ):
        assert await is_refused(login, credentials)


async def test_new_token_is_random_and_its_line_holds_only_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    (token, line), (other, _) = new_token("alice"), new_token("alice")
    assert token != other
    assert token not in line
    assert len(token) > 40
    file.write_text(f"# who may use it\n\n  {line}  \n")
    login = TokenLogin(str(file))
    assert await login.authenticate(bearer(token)) == "alice"
    assert await is_refused(login, bearer(other))
    assert await is_refused(login, bearer(line.partition(":")[2]))


@pytest.mark.parametrize("name", ["", "al ice", "alice:", "a,b", "-alice", "a\n", "é", "x" * 65, "../x"])
def test_name_that_the_file_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name has"):
        new_token(name)


async def test_file_is_read_again_after_a_change(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "tokens"
    (alice, alice_line), (bob, bob_line) = new_token("alice"), new_token("bob")
    file.write_text(alice_line)
    login = TokenLogin(str(file), now=clock)
    for content, accepted in ((f"{alice_line}\n{bob_line}\n", {alice, bob}), (bob_line, {bob}), ("", set[str]())):
        file.write_text(content)
        os.utime(file, (1, 1))  # a change that keeps the time of the file counts too
        clock.time += RELOAD_SECONDS
        assert {token for token in (alice, bob) if not await is_refused(login, bearer(token))} == accepted
        assert await login.is_known("alice") == (alice in accepted)


async def test_broken_file_keeps_the_last_contents_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file = tmp_path / "tokens"
    token, line = new_token("alice")
    file.write_text(line)
    login = TokenLogin(str(file), now=clock)
    caplog.set_level(logging.ERROR)
    for content in ("alice", f"{line}\nbob:{token}", f"{line}\n{line}", "x" * (MAX_FILE_BYTES + 1), None, "\xff\x00"):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        clock.time += RELOAD_SECONDS
        assert await login.authenticate(bearer(token)) == "alice"
    assert len(caplog.records) == 1
    assert "line 1: must be name:hash" in caplog.text
    file.write_text(new_token("bob")[1])
    clock.time += RELOAD_SECONDS
    assert await is_refused(login, bearer(token))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("alice:secret", "line 1: must be name:hash"),
        ("#\nsecret", "line 2: must be name:hash"),
        (f"a b:{'0' * 64}", "line 1: a name has"),
        (f"a:{'0' * 64}\na:{'1' * 64}", "line 2: the name is there twice"),
        (f"a:{'0' * 64}\nb:{'0' * 64}", "line 2: the token is there twice"),
        (None, r"must be name:token.* \(no such file or directory\)"),
    ],
    ids=["short", "no name", "bad name", "name twice", "token twice", "missing"],
)
def test_unusable_file_is_refused_at_the_start(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "secret-file"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=problem) as refused:
        TokenLogin(str(file))
    assert "secret" not in str(refused.value)


PROXY = ProxyLogin(header="X-Forwarded-User", networks=["10.1.0.0/16", "2001:db8::/32", "127.0.0.1"])


def forwarded(peer: str, *names: bytes) -> Credentials:
    headers = [(b"x-forwarded-for", b"10.1.2.3"), *((b"x-forwarded-user", name) for name in names)]
    return Credentials(headers=headers, peer=peer)


@pytest.mark.parametrize("peer", ["10.1.2.3", "127.0.0.1", "2001:db8::5", "::ffff:10.1.2.3"])
async def test_proxy_names_the_user(peer: str) -> None:
    assert await PROXY.authenticate(forwarded(peer, b"alice@example.org")) == "alice@example.org"
    assert await PROXY.authenticate(forwarded(peer, "Zoë".encode())) == "Zoë"


@pytest.mark.parametrize("peer", ["10.2.0.1", "192.0.2.1", "127.0.0.2", "::1", "", "10.1.2.3:80", "fe80::1%eth0"])
async def test_header_from_elsewhere_is_refused(peer: str) -> None:
    assert await is_refused(PROXY, forwarded(peer, b"alice"))


@pytest.mark.parametrize(
    "names",
    [(), (b"",), (b"alice", b"alice"), (b"evil", b"alice"), (b"evil, alice",), (b"\xff",), (b"a\x00",), (b"x" * 300,)],
    ids=["none", "empty", "twice", "two", "two in one", "not UTF-8", "not printable", "long"],
)
async def test_header_that_does_not_name_one_user_is_refused(names: tuple[bytes, ...]) -> None:
    assert await is_refused(PROXY, forwarded("10.1.2.3", *names))


@pytest.mark.parametrize(
    ("header", "network", "setting"),
    [
        ("X User", "10.0.0.0/8", "AUTH_PROXY_HEADER"),
        ("Authorization", "10.0.0.0/8", "AUTH_PROXY_HEADER"),
        ("X-User", "10.0.0.1/8", "AUTH_PROXY_FROM"),
        ("X-User", "proxy.example", "AUTH_PROXY_FROM"),
        ("X-User", "0.0.0.0/0", "AUTH_PROXY_FROM"),
        ("X-User", "::/0", "AUTH_PROXY_FROM"),
    ],
)
def test_unusable_proxy_setting_is_named(header: str, network: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"^{setting}: "):
        ProxyLogin(header=header, networks=[network])


async def test_tickets_of_a_time_with_logins_open_nothing_without_one() -> None:
    assert await NoLogin().is_known("")
    assert not await NoLogin().is_known("alice")
