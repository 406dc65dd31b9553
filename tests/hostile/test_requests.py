"""Requests that no well-behaved client sends: malformed, oversized, or for another host."""

import asyncio

import pytest

from app.interfaces.http_connection import MAX_HEAD
from tests.hostile.conftest import LONG, HostileClient, failure_of, status_of

GET = b"GET /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
UPGRADE = b"GET /api/v1/sessions/x/vnc HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
HANDSHAKE = UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
POST = b"POST /api/v1/sessions/x/chat HTTP/1.1\r\nHost: 127.0.0.1\r\n"

OVERSIZED = {
    "one header": [GET, b"X: " + b"a" * MAX_HEAD, b"\r\n\r\n"],
    "one header that does not end": [GET, b"X: ", *[b"a" * MAX_HEAD] * 50],
    "many headers": [GET, *[b"X: " + b"a" * 1000 + b"\r\n"] * 300, b"\r\n"],
    "many tiny headers": [GET, b"a:\r\n" * 50_000, b"\r\n"],
    "name": [GET, b"a" * MAX_HEAD, b": x\r\n\r\n"],
    "address": [b"GET /" + b"a" * MAX_HEAD, b" HTTP/1.1\r\n\r\n"],
    "query": [b"GET /?", *[b"a" * MAX_HEAD] * 50],
    "handshake of a WebSocket": [HANDSHAKE, b"X: " + b"a" * MAX_HEAD, b"\r\n\r\n"],
    "trailers": [POST, b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"X: aaaaaaaa\r\n" * 20_000, b"\r\n"],
    "trailer that does not end": [POST, b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", *[b"a" * MAX_HEAD] * 50],
}


@pytest.mark.parametrize("parts", OVERSIZED.values(), ids=OVERSIZED.keys())
async def test_oversized_head_returns_431_envelope(hostile: HostileClient, parts: list[bytes]) -> None:
    code, message = failure_of(await hostile.exchange(*parts))
    assert code == 431
    assert str(MAX_HEAD) in message


async def test_head_of_almost_the_limit_is_accepted(hostile: HostileClient) -> None:
    headers = b"X: " + b"a" * 1000 + b"\r\n"
    assert status_of(await hostile.exchange(GET + headers * 60 + b"\r\n")) == 200


async def test_many_requests_of_a_connection_are_not_added_up(hostile: HostileClient) -> None:
    request = GET.replace(b"Connection: close\r\n", b"") + b"X: " + b"a" * 40_000 + b"\r\n\r\n"
    response = await hostile.exchange(*[request] * 4, GET + b"\r\n")
    assert response.count(b"HTTP/1.1 200 OK") == 5


async def test_small_chunks_of_a_body_are_not_counted_as_head(hostile: HostileClient) -> None:
    session_id = await hostile.harness.create_session()
    body = b"1\r\n \r\n" * 30_000 + b"2\r\n{}\r\n0\r\n\r\n"
    head = POST.replace(b"/x/", f"/{session_id}/".encode()) + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status_of(await hostile.exchange(head, body)) == 200


async def test_trailers_are_not_taken_for_headers(hostile: HostileClient) -> None:
    body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    assert status_of(await hostile.exchange(GET + body + b"Origin: http://evil.example\r\n\r\n")) == 200


MALFORMED = {
    "origin": (GET + b"Origin: http://[\r\n\r\n", 403),
    "origin of a WebSocket": (HANDSHAKE + b"Origin: http://[\r\n\r\n", 403),
    "origin with bytes that are no text": (GET + b"Origin: \xff\xfe\r\n\r\n", 403),
    "empty origin": (GET + b"Origin:\r\n\r\n", 403),
    "second host": (GET + b"Host: 127.0.0.1\r\n\r\n", 400),
    "no host": (GET.replace(b"Host: 127.0.0.1\r\n", b"") + b"\r\n", 400),
    "host": (GET.replace(b"127.0.0.1", b"[::1") + b"\r\n", 403),
    "host of a WebSocket": (HANDSHAKE.replace(b"127.0.0.1", b"evil.example") + b"\r\n", 403),
    "foreign host for curl": (GET.replace(b"127.0.0.1", b"evil.example") + b"User-Agent: curl/8\r\n\r\n", 403),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "header without a colon": (GET + b"nothing\r\n\r\n", 400),
    "header with a space in its name": (GET + b"a b: c\r\n\r\n", 400),
    "folded header": (GET + b"X: a\r\n b\r\n\r\n", 400),
    "nul in a header": (GET + b"X: a\0b\r\n\r\n", 400),
    "content length": (POST + b"Content-Length: x\r\n\r\n", 400),
    "negative content length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "huge content length": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    "two content lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "length and chunks": (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    "unknown method": (b"HACK / HTTP/1.1\r\n\r\n", 400),
    "method connect": (b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n", 400),
    "version": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "address without a path": (b"GET http://127.0.0.1 HTTP/1.1\r\n\r\n", 400),
    "event id": (GET.replace(b"/sessions", b"/sessions/x/events") + b"Last-Event-ID: \xff\r\n\r\n", 400),
    "handshake without a key": (UPGRADE + b"Sec-WebSocket-Version: 13\r\n\r\n", 400),
    "handshake of another version": (HANDSHAKE.replace(b": 13", b": 8") + b"\r\n", 400),
    "handshake with another method": (HANDSHAKE.replace(b"GET", b"POST") + b"\r\n", 405),
    "handshake with a long header": (HANDSHAKE + b"X: " + b"a" * 10_000 + b"\r\n\r\n", 400),
    "handshake with many headers": (HANDSHAKE + b"X: a\r\n" * 200 + b"\r\n", 400),
    "handshake with an invalid header": (HANDSHAKE + b"a b: c\r\n\r\n", 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_request_returns_envelope_without_error_in_log(
    hostile: HostileClient, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: int
) -> None:
    code, message = failure_of(await hostile.exchange(request_bytes))
    assert code == status
    assert message
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL") or each.exc_info] == []


ADDRESSES = [
    *(b"/api/v1/sessions/../../../etc/passwd", b"/api/v1/sessions/%2e%2e/%2e%2e/etc/passwd", b"/%00", b"/\xff"),
    *(b"//etc/passwd", b"/api/v1/sessions/x/pictures/..%2f..%2fanker.db", b"/api/v1/sessions/x%0d%0aSet-Cookie:%20a=b"),
    *(b"/api/v1/sessions/x/pictures/" + b"a" * 5000, b"/api/v1/sessions/" + b"a" * 5000, b"/docs/../anker.db", b"*"),
    *(b"/static/..%2f..%2fanker.db", b"/docs/assets/..%2f..%2f..%2fmain.py", b"/api/v1/sessions?limit=%ff&cursor=%00"),
    *(b"http://evil.example/api/v1/nothing", b"/api/v1/sessions?cursor=" + b"a" * 5000, b"/%u2215", b"/.%5c.%5cetc"),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=range(len(ADDRESSES)))
async def test_tricks_in_addresses_return_client_errors(hostile: HostileClient, address: bytes) -> None:
    response = await hostile.exchange(GET.replace(b"/api/v1/sessions", address) + b"\r\n")
    code, message = failure_of(response)
    assert code in (400, 404)
    assert "passwd" not in message
    assert b"set-cookie" not in response.lower()


async def test_oversized_heads_at_once_leave_nothing_behind(hostile: HostileClient) -> None:
    count = 300 if LONG else 30
    parts = [GET, b"X: ", *[b"a" * MAX_HEAD] * 8]
    responses = await asyncio.gather(*(hostile.exchange(*parts) for _ in range(count)))
    assert {status_of(response) for response in responses} == {431}
    assert status_of(await hostile.exchange(GET + b"\r\n")) == 200
