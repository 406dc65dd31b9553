"""Parsers of what others wrote: a value within its bounds, or the one error that the parser names."""

import asyncio
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from app.application.services.desktop_links import DesktopLinks
from app.domain.errors import BrowserFailure, InvalidInput, SandboxFailure, SandboxUnavailable, Unauthorized
from app.infrastructure.browser.model_input import candidate_urls, parse_keys, shown_url, window_action, workspace_path
from app.infrastructure.persistence.session_summary import decode_cursor
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import open_envelope
from app.interfaces.middleware import OriginMiddleware
from app.interfaces.wire import event_number
from app.model_config import ModelConfig, load_models
from app.settings import Settings, UnusableSetting
from tests.hostile.conftest import HostileClient, hostile  # noqa: F401 - a fixture
from tests.support.api_harness import ApiHarness
from tests.support.fuzzing import examples

DIGITS = st.text("0123456789\u0660\u00b2-+_. \n\0", max_size=25)


@examples(200, 100_000)
@given(DIGITS | st.text(max_size=30))
def test_event_id_is_a_number_that_the_stores_hold_or_invalid(text: str) -> None:
    try:
        assert 1 <= event_number(text) < 2**63
    except InvalidInput:
        pass


@examples(200, 100_000)
@given(DIGITS | st.text(max_size=30))
def test_cursor_is_two_numbers_that_the_stores_hold_or_invalid(text: str) -> None:
    try:
        assert all(-(2**63) <= number < 2**63 for number in decode_cursor(text))
    except InvalidInput:
        pass


@examples(60, 100_000)
@given(st.data())
def test_changed_link_to_a_desktop_is_refused(data: st.DataObject) -> None:
    harness = ApiHarness()
    links = DesktopLinks(sessions=harness.store, key=b"k", audit=harness.audit, now=lambda: 1_000.0)

    async def sign() -> str:
        await harness.store.create("s", owner="o", at=0)
        return await links.sign("s", owner="o", seconds=60, view_only=True)

    signature = asyncio.run(sign())
    start = data.draw(st.integers(0, len(signature)))
    changed = (
        signature[:start]
        + data.draw(st.text("01.af-_", max_size=3) | st.text(max_size=3))
        + signature[start + data.draw(st.integers(0, 3)) :]
    )
    assert links.check(signature, session_id="s").view_only
    for text, session_id in ((changed, "s"), (signature, "t")):
        if (text, session_id) != (signature, "s"):
            with pytest.raises(Unauthorized):
                links.check(text, session_id=session_id)


HOST_PARTS = st.sampled_from(
    (
        *(
            "localhost",
            "127.0.0.1",
            "[::1]",
            "app.example",
            "evil.example",
            ":",
            "8000",
            "@",
            "/",
            "[",
            "]",
            "%",
            "#",
            "\\",
        ),
        *("?", " ", "\t", ".", "localhost.", "LOCALHOST", "\u212aelvin", "xn--", "::1", "0x7f.1", "127.1", "\xad"),
    )
)
HOSTS = st.lists(HOST_PARTS, max_size=4).map("".join) | st.text(max_size=12)
KNOWN = re.compile(
    r"(localhost|app\.example|127\.0\.0\.1|\[[0-9a-f:.]+\]|\d+\.\d+\.\d+\.\d+)(:\d*)?", re.IGNORECASE | re.ASCII
)


@examples(200, 100_000)
@given(
    st.lists(HOSTS, min_size=1, max_size=2),
    st.lists(
        st.builds(lambda scheme, host: scheme + host, st.sampled_from(("http://", "https://", "")), HOSTS), max_size=2
    ),
)
def test_only_known_hosts_and_origins_pass(hosts: list[str], origins: list[str]) -> None:
    passed, sent = [], []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    raw = [(b"host", host.encode("utf-8", "surrogatepass")) for host in hosts]
    raw += [(b"origin", origin.encode("utf-8", "surrogatepass")) for origin in origins]
    guard = OriginMiddleware(inside, allowed=["https://app.example"], loopback_only=True)
    asyncio.run(guard({"type": "http", "method": "GET", "path": "/", "headers": raw}, receive, send))
    assert bool(passed) != bool(sent)
    if passed:
        assert all(KNOWN.fullmatch(host) for host in hosts)
        assert all(
            origin == "https://app.example" or origin.lower() in (f"http://{host}", f"https://{host}")
            for origin in origins
            for host in [hosts[0].lower()]
        )
    else:
        assert sent[0]["status"] == 403


TOML_KEYS = st.sampled_from(
    (
        *(
            "default",
            "planner",
            "models.a.model",
            "models",
            "model",
            "context_tokens",
            "prices",
            "base_url",
            "x",
            "'\u2028'",
        ),
        *("a." * 3_000 + "b", "", "[", "temperature", "api_key_env", '"\x0c"'),
    )
)
TOML_VALUES = st.sampled_from(
    (
        '"a"',
        "'m'",
        '"http://["',
        '"http://a/v1"',
        "inf",
        "nan",
        "1",
        "-1",
        "1e400",
        "true",
        "1" * 5_000,
        "0x" + "f" * 4_000,
        "2026-11-27T10:00:00",
        "2026-99-99",
        "[" * 3_000,
        "{a=" * 3_000,
        "[[1], {a = 2}]",
        "{prompt = 1, completion = 2}",
        *('"""', "", "{", "[1,", '"\\u', '"\\ud800"', "\x0c", "# no value"),
    )
)
TOML = st.lists(
    st.builds("{} = {}\n".format, TOML_KEYS, TOML_VALUES)
    | st.sampled_from(("[models.a]\n", "[models.a]\nmodel = 'm'\n", "[[models]]\n", "[", "\r", "\u2028", "\x0c", '"""'))
    | st.text(max_size=5),
    max_size=6,
).map("".join)


@examples(100, 50_000)
@given(st.one_of(TOML.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=40)))
def test_any_models_file_is_used_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(content)
    try:
        assert isinstance(load_models(Settings(models_config=str(path), _env_file=None)), ModelConfig)  # type: ignore[call-arg]
    except UnusableSetting as error:
        assert str(error).startswith("MODELS_CONFIG: ")
        assert len(str(error).splitlines()) == 1


URL_STARTS = st.sampled_from(
    (
        "",
        "",
        "http://",
        "HTTPS:",
        "file://",
        "file:",
        "FILE:///",
        "data:",
        "javascript:",
        "about:blank",
        "//",
        "/",
        "~/",
        "~",
    )
)
URL_PARTS = st.sampled_from(
    (
        *(
            ":",
            "/",
            "..",
            "/../",
            "[",
            "]",
            "[::1]",
            "@",
            "%",
            "#",
            "?",
            "\\",
            " ",
            "\n",
            "\0",
            "localhost",
            "a.example",
        ),
        *("99999", "-1", "%00", "%2e%2e", "%2f", "\ud800", "\u2028", "é", "home/ubuntu", "\u2100"),
    )
)
URLS = st.builds(
    lambda start, parts: start + "".join(parts), URL_STARTS, st.lists(URL_PARTS | st.text(max_size=4), max_size=6)
)


@examples(300, 100_000)
@given(URLS)
def test_any_address_of_the_model_is_opened_or_refused(text: str) -> None:
    try:
        for url in candidate_urls(text, "/home/ubuntu"):
            assert url.split(":")[0].lower() in ("http", "https", "data", "about", "file")
            if url.startswith("file:"):
                assert url == "file:///home/ubuntu" or url.startswith("file:///home/ubuntu/")
    except BrowserFailure as error:
        assert str(error)
    shown_url(text, "/home/ubuntu")
    assert workspace_path(text, "/home/ubuntu").startswith("/")
    window_action(parse_keys(text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
RESPONSE_FIELDS = (
    *("output", "status", "returncode", "note", "console", "truncated", "output_file", "content", "line_count", "file"),
    *("matches", "line_numbers", "path", "files", "base64", "media_type", "original_width", "bytes_written", "view"),
    *("ready", "reason", "idle_seconds", "shell", "version", "encoding", "next_line", "entries"),
)
DATA = st.dictionaries(st.sampled_from(RESPONSE_FIELDS), JSON, max_size=6)
ENVELOPES = st.builds(
    lambda success, message, data: json.dumps({"success": success, "message": message, "data": data}).encode(),
    st.sampled_from((True, False, 1, None)),
    JSON,
    DATA | JSON,
) | st.binary(max_size=30)


@examples(80, 50_000)
@given(st.sampled_from((200, 201, 204, 302, 400, 401, 404, 500, 999)), ENVELOPES)
def test_any_response_of_a_sandbox_is_parsed_or_a_failure_of_it(status: int, body: bytes) -> None:
    parsers = (
        lambda data: responses.parse_shell_state(data, "id"),
        lambda data: responses.parse_file_text(data, "f"),
        lambda data: responses.parse_file_change(data, "f", "bytes_written"),
        lambda data: responses.parse_file_matches(data, "f"),
        lambda data: responses.parse_found_files(data, "p"),
        lambda data: responses.parse_file_image(data, "f"),
        responses.parse_parts,
        responses.parse_idle_seconds,
    )
    try:
        data = open_envelope(status, body)
    except (SandboxFailure, SandboxUnavailable):
        return
    for parse in parsers:
        try:
            parse(data)
        except SandboxUnavailable as error:
            assert "malformed" in str(error)


LINES = st.sampled_from(
    (
        b"GET /health HTTP/1.1\r\n",
        b"POST /api/v1/sessions HTTP/1.1\r\n",
        b"PUT /api/v1/sessions HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"GET http://127.0.0.1/health HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"Host: 127.0.0.1\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"Connection: close\r\n",
        b"Last-Event-ID: \xff\x00\r\n",
        b"Cookie: a=b\r\n folded\r\n",
        b": x\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b'5\r\n{"a":\r\n',
        b"ffffffffffffffff1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    )
) | st.binary(max_size=12)


@examples(40, 5_000)
@given(lines=st.lists(LINES, max_size=8), places=st.lists(st.integers(0, 200), max_size=3))
async def test_any_bytes_on_a_connection_get_whole_responses_or_none(
    hostile: HostileClient,  # noqa: F811
    lines: list[bytes],
    places: list[int],
) -> None:
    data = b"".join(lines)
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    reader, writer = await hostile.connect()
    for start, end in pairwise(edges):
        writer.write(data[start:end])
    if writer.can_write_eof():
        writer.write_eof()
    async with asyncio.timeout(20):
        try:
            response = await reader.read()
        except ConnectionError:
            response = b""
    writer.close()
    assert response == b"" or response.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 5" not in response
    assert b"Traceback" not in response
