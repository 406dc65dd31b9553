"""The mask of the service's own secrets: every form of a value, and texts that arrive in pieces."""

import logging
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.models.event import MessageEvent, ToolCalledEvent, ToolOutcome
from app.domain.models.run import Checkpoint
from app.infrastructure.auth.tokens import new_token
from app.infrastructure.logging import JsonLines
from app.infrastructure.secrets.known_secrets import MASK, WINDOW, KnownSecrets
from app.own_secrets import secrets_of
from app.settings import Settings
from tests.support.canaries import FORMS

KEY = "sk-proj-Nq7/Zt+4xW_9bLr2cVh8Yd5mKf1Js3Pg"
PASSWORD = 'p"ss\\wörd&<1>%41'
TOKEN = f"anker_{KEY[-20:]}{KEY[:23]}".replace("/", "_").replace("+", "-")
SECRETS = KnownSecrets({"API_KEY": KEY, "MONGODB_URL": PASSWORD})


@pytest.mark.parametrize("secret", [pytest.param(KEY, id="key"), pytest.param(PASSWORD, id="password")])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_secret_is_masked(form: str, secret: str) -> None:
    text = f"see [{FORMS[form](secret)}] there"
    shown = SECRETS.mask(text)
    assert MASK in shown
    # At its ends, Base64 mixes characters of the secret with the bytes around it.
    assert len(shown) <= len(f"see [{MASK}] there") + 4
    assert shown.startswith("see [")
    assert shown.endswith("] there")


@given(st.text(), st.integers(WINDOW, len(KEY)), st.data())
def test_part_of_a_secret_that_a_limit_left_is_masked(around: str, length: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(KEY) - length))
    part = KEY[start : start + length]
    assert part not in SECRETS.mask(around + part + around)


@given(st.text(alphabet='abcdefg \n%\\u0041&;"é😀'))
def test_text_without_a_secret_is_unchanged(text: str) -> None:
    assert SECRETS.mask(text) == text


PIECES = st.one_of(
    st.text(max_size=8),
    st.text(alphabet="%25\\u0041&#x;amp\r\nsk-pro", max_size=12),
    st.sampled_from([form(secret) for form in FORMS.values() for secret in (KEY, PASSWORD)]),
    st.integers(0, len(TOKEN)).map(lambda end: TOKEN[:end]),
    st.integers(0, len(KEY) - 1).map(lambda start: KEY[start:]),
    st.integers(1, len(KEY)).map(lambda end: KEY[:end]),
)


@given(st.lists(PIECES, max_size=6), st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_pieces_are_masked_as_the_whole_text(parts: list[str], sizes: list[int]) -> None:
    whole, shown = "".join(parts), []
    stream = SECRETS.stream()
    position = turn = 0
    while position < len(whole):
        size = sizes[turn % len(sizes)]
        shown.append(stream.feed(whole[position : position + size]))
        position, turn = position + size, turn + 1
    assert "".join([*shown, stream.flush()]) == SECRETS.mask(whole)


def test_stream_holds_back_nothing_that_no_secret_begins_with() -> None:
    stream = SECRETS.stream()
    assert [stream.feed(word) for word in ("Hello ", "there, ", "friend. ")] == ["Hello ", "there, ", "friend. "]


def test_login_token_of_which_only_the_hash_is_known_is_masked() -> None:
    token, _ = new_token("ann")
    assert KnownSecrets().mask(f"Bearer {token}, {quote(token)}") == f"Bearer {MASK}, {MASK}"


def test_secret_added_later_is_masked_from_then_on() -> None:
    secrets = KnownSecrets()
    stream = secrets.stream()
    assert secrets.mask(KEY) == KEY
    secrets.add({"API_KEY": KEY})
    secrets.add_passing("token-of-a-sandbox-1234")
    assert secrets.mask(f"{KEY} token-of-a-sandbox-1234") == f"{MASK} {MASK}"
    assert stream.feed(KEY[:9]) + stream.feed(KEY[9:]) + stream.flush() == MASK


def own_secrets(tmp_path: Path, **settings: str) -> list[str]:
    """Return the values of the secrets in `settings`."""
    return list(secrets_of(Settings(_env_file=None, data_dir=tmp_path, **settings)).values())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["abc://def:ghi@jkl/0123456789", "0123456789?key=x@y"], ids=["address", "query"])
def test_secret_that_looks_like_an_address_is_masked_whole(tmp_path: Path, value: str) -> None:
    assert value in own_secrets(tmp_path, api_key=value)
    assert value in own_secrets(tmp_path, sandbox_token=value)
    assert own_secrets(tmp_path, api_tokens=f"ann:{KEY}, bob:{value}")[-1] == value


@pytest.mark.parametrize("name", ["mongodb_url", "redis_url"])
@pytest.mark.parametrize(
    ("password", "rest"),
    [
        (quote(PASSWORD, safe=""), "h1:1,h2:2/db?appName=me@x"),
        (PASSWORD.replace("%", "%25"), "h"),
        ("p/w?:#%40@1234", "h/?authSource=a%40b"),
    ],
    ids=["encoded", "needlessly not encoded", "wrongly not encoded"],
)
def test_password_in_address_of_store_is_masked_encoded_and_decoded(
    tmp_path: Path, name: str, password: str, rest: str
) -> None:
    scheme = name.partition("_")[0]
    found = own_secrets(tmp_path, **{name: f"{scheme}://user:{password}@{rest}"})
    assert {password, unquote(password)} <= set(found)
    assert KnownSecrets(dict.fromkeys(found, "")).mask("user at h1:1") == "user at h1:1"


def test_secrets_in_query_of_an_address_are_masked_decoded(tmp_path: Path) -> None:
    found = own_secrets(
        tmp_path, redis_url="redis://h/0?p%61ssw%6Frd=se%63ret+1234&timeout=5", api_base="http://h?sig=a%2Bb"
    )
    assert {"se%63ret+1234", "secret+1234", "secret 1234", "a+b"} <= set(found)
    assert "5" not in found
    properties = "SERVICE_NAME:mongodb,AWS_SESSION_TOKEN:se/cret=,REALM:domain"
    for value in (properties, quote(properties, safe="")):
        found = own_secrets(tmp_path, mongodb_url=f"mongodb://h/?authMechanismProperties={value}&w=1")
        assert "se/cret=" in found
        assert not any("mongodb" in each or "domain" in each for each in found)


def test_short_secret_is_ignored_with_a_warning_without_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert KnownSecrets({"API_KEY": "hunter2"}).mask("hunter2") == "hunter2"
    assert "hunter2" not in caplog.text
    assert "API_KEY is shorter than 8 characters" in JsonLines().format(caplog.records[0])


def test_every_text_of_a_value_is_masked_and_an_unaffected_value_is_the_same_object() -> None:
    event = ToolCalledEvent(
        tool_call_id="1",
        name="shell",
        function="shell_exec",
        args={"command": f"echo {KEY}", KEY: [1, None, (KEY,)]},
        content={"console": [{"output": KEY}]},
        result=ToolOutcome(success=True, message=KEY, data=None),
    )
    assert KEY not in repr(SECRETS.mask(event))
    for clean in (MessageEvent(role="user", content="hello"), Checkpoint()):
        assert SECRETS.mask(clean) is clean
