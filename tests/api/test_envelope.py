"""Every JSON response has the envelope, whatever the request."""

import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.middleware import Middleware

from app.domain import errors
from app.interfaces.errors import STATUS, status_of
from tests.support.api_harness import API, ApiHarness


def check(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["code", "msg", "data"]
    if answer.status_code == 200:
        assert (body["code"], body["msg"]) == (0, "success")
    else:
        assert (body["code"], body["data"]) == (answer.status_code, None)
        assert isinstance(body["msg"], str)
        assert body["msg"]
        assert "Traceback" not in body["msg"]
        assert "/site-packages" not in body["msg"]
    assert answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    return body


BODIES = {
    "malformed": b'{"message": ',
    "array": b"[]",
    "null": b"null",
    "string": b'"x"',
    "number": b"1",
    "nan": b'{"timestamp": NaN}',
    "infinity": b'{"timestamp": 1e999}',
    "deep": b'{"a":' * 10_000,
    "deep arrays": b"[" * 100_000,
    "invalid utf-8": b'{"message": "\xff\xfe"}',
    "invalid utf-8 alone": b"\xff",
    "utf-16": '{"message": "x"}'.encode("utf-16"),
    "lone surrogate": b'{"message": "\\ud83d"}',
    "form": b"message=x&stream=true",
    "two values": b"{} {}",
    "single quotes": b"{'message': 'x'}",
    "nul bytes": b"\x00\x00",
}


@pytest.mark.parametrize("path", ["chat", "shell", "file"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_malformed_body_returns_400(
    harness: ApiHarness, client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded", "garbage"):
        answer = await client.post(
            f"{API}/{await harness.create_session()}/{path}", content=body, headers={"content-type": content_type}
        )
        assert answer.status_code == 400
        check(answer)


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_one_mebibyte_returns_413(
    harness: ApiHarness, client: httpx.AsyncClient, chunked: bool
) -> None:
    piece = b" " * 65_536

    async def pieces():
        for _ in range(20):
            yield piece

    content: Any = pieces() if chunked else piece * 20
    answer = await client.post(f"{API}/{await harness.create_session()}/chat", content=content)
    assert answer.status_code == 413
    check(answer)


@pytest.mark.parametrize("chunked", [False, True])
async def test_client_that_sends_whole_body_first_reads_413(
    harness: ApiHarness, live_client: httpx.AsyncClient, chunked: bool
) -> None:
    piece = b" " * 65_536

    async def pieces():
        for _ in range(100):
            yield piece

    content: Any = pieces() if chunked else piece * 100
    answer = await live_client.post(f"{API}/{await harness.create_session()}/chat", content=content)
    assert answer.status_code == 413
    check(answer)


async def test_endless_body_is_cut_off(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    async def endless():
        while True:
            yield b"x" * 65_536

    try:
        answer = await live_client.post(f"{API}/{await harness.create_session()}/chat", content=endless())
    except httpx.TransportError:
        return
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/api/v1", 404),
        ("GET", "/api/v2/sessions", 404),
        ("GET", f"{API}/", 404),
        ("PUT", f"{API}/", 404),
        ("GET", f"{API}/x/", 404),
        ("GET", f"{API}/x/y/z", 404),
        ("GET", "//", 404),
        ("PATCH", API, 405),
        ("DELETE", API, 405),
        ("POST", f"{API}/x", 405),
        ("GET", f"{API}/x/chat", 405),
        ("PUT", f"{API}/x/stop", 405),
        ("POST", "/health", 405),
        ("OPTIONS", API, 405),
        ("TRACE", "/health", 405),
        ("BREW", API, 405),
    ],
)
async def test_unknown_path_or_method_returns_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    check(answer)
    assert ("allow" in answer.headers) == (status == 405)


async def test_405_lists_all_allowed_methods(client: httpx.AsyncClient) -> None:
    assert (await client.patch(API)).headers["allow"] == "GET, HEAD, POST, PUT"


async def test_head_returns_headers_of_get_without_body(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    for path in ("/health", API, f"{API}/{session_id}", f"{API}/{session_id}/events"):
        head = await live_client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    assert (await live_client.head(f"{API}/nobody")).status_code == 404
    assert (await live_client.get("/health")).status_code == 200  # the connection still works


async def test_unexpected_error_returns_500_and_is_logged_with_request_id(
    harness: ApiHarness, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(**_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(harness.store, "page", broken)
    answer = await client.get(API)
    assert answer.status_code == 500
    assert "secret" not in check(answer)["msg"]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info


async def test_unavailable_store_returns_503_on_every_endpoint(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    harness.store.trouble = "the database is away"
    for method, path in [
        ("PUT", API),
        ("GET", API),
        ("GET", f"{API}/{session_id}"),
        ("DELETE", f"{API}/{session_id}"),
        ("POST", f"{API}/{session_id}/stop"),
        ("POST", f"{API}/{session_id}/chat"),
        ("GET", f"{API}/{session_id}/events"),
    ]:
        answer = await client.request(method, path)
        assert answer.status_code == 503
        assert check(answer)["msg"] == "the database is away"
        assert answer.headers["retry-after"] == "5"


async def test_health_and_ready_report_states(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    assert check(await client.get("/health"))["data"] == {"status": "ok"}
    assert check(await client.get("/ready"))["data"] == {"store": "ok", "sandbox": "ok"}
    harness.store.trouble = "the disk is full"
    assert check(await client.get("/health"))["code"] == 0
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert check(answer)["msg"] == "store: the disk is full; sandbox: ok"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-1._X", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("é", False), ("", False)],
)
async def test_plain_request_id_is_kept_and_other_is_replaced(client: httpx.AsyncClient, sent: str, kept: bool) -> None:
    answer = await client.get("/health", headers={"X-Request-ID": sent.encode()})
    assert (answer.headers["x-request-id"] == sent) == kept


async def test_each_request_is_logged_once(
    client: httpx.AsyncClient, harness: ApiHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.interfaces.middleware")
    await client.head(f"{API}/{await harness.create_session()}")
    record = [record for record in caplog.records if record.name == "app.interfaces.middleware"][-1]
    assert (record.__dict__["method"], record.__dict__["route"]) == ("HEAD", API + "/{session_id}")
    assert record.__dict__["status"] == 200


async def test_cors_allows_only_named_origins() -> None:
    harness = ApiHarness(origins=["https://ui.example"])
    preflight = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "idempotency-key"}
    answer = await harness.client.options(API, headers={"Origin": "https://ui.example", **preflight})
    assert answer.headers["access-control-allow-origin"] == "https://ui.example"
    answer = await harness.client.get(f"{API}/x", headers={"Origin": "https://ui.example"})
    assert answer.headers["access-control-allow-origin"] == "https://ui.example"
    answer = await harness.client.get(API, headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers
    await harness.close()


def test_every_error_class_has_a_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AnkerError)]
    made = {kind: kind("x", limit="") if kind is errors.LimitReached else kind("x") for kind in kinds}
    assert {kind.__name__: status_of(error) for kind, error in made.items()} == {
        "AnkerError": 500,
        "InvalidInput": 400,
        "Unauthorized": 401,
        "Forbidden": 403,
        "NotFound": 404,
        "Conflict": 409,
        "Superseded": 409,
        "LeaseLost": 409,
        "TooLarge": 413,
        "_Retryable": 500,
        "LimitReached": 429,
        "Unavailable": 503,
        "StoreUnavailable": 503,
        "StaleCheckpoint": 503,
        "SandboxUnavailable": 503,
        "SandboxFailure": 400,
        "BrowserFailure": 400,
        "SearchFailure": 502,
        "ModelFailure": 502,
        "ContextTooLong": 502,
        "MalformedReply": 502,
        "RunLimitReached": 500,
        "RunGivenUp": 500,
    }
    assert all(400 <= status < 600 for status in STATUS.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["message", "timestamp", "event_id", "stream", "session_id", "file"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["chat", "shell", "file", "stop"]),
    body=st.binary(max_size=60) | (JSON | st.dictionaries(NAMES, JSON)).map(lambda value: json.dumps(value).encode()),
)
async def test_random_bodies_never_return_500_or_no_envelope(harness: ApiHarness, path: str, body: bytes) -> None:
    answer = await harness.client.post(f"{API}/{await harness.create_session()}/{path}", content=body)
    assert answer.status_code in (200, 400, 404)
    if not answer.headers["content-type"].startswith("text/event-stream"):
        check(answer)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.dictionaries(st.sampled_from(["after", "limit", "tail", "cursor"]), st.text(max_size=30)))
async def test_random_queries_never_return_500(harness: ApiHarness, query: dict[str, str]) -> None:
    for path in (API, f"{API}/{await harness.create_session()}"):
        answer = await harness.client.get(path, params=query)
        assert answer.status_code in (200, 400)
        check(answer)


@pytest.mark.parametrize("outermost", [False, True])
async def test_exception_in_middleware_returns_500_envelope_and_is_logged(
    harness: ApiHarness, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, outermost: bool
) -> None:
    class Broken:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise ValueError("secret detail")

    if outermost:
        harness.app.add_middleware(Broken)
    else:
        harness.app.user_middleware.append(Middleware(Broken))
    answer = await client.get(API)
    assert answer.status_code == 500
    assert "secret detail" not in check(answer)["msg"]
    assert caplog.text.count("Traceback") == 1
