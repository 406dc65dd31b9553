"""Failures of OpenAIModel: which are retried, which are final, and their texts."""

import asyncio
import socket
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from app.domain.errors import ModelFailure
from app.infrastructure.llm.failures import RetryPolicy
from tests.contract.llm.conftest import KEY
from tests.fakes.scripted_openai import Call, Raw, Reply, Status

GOOD = Reply(text="ok")


def failure(status: int, message: str = "", **more: object) -> Status:
    headers = more.pop("headers", {})
    return Status(status=status, body={"error": {"message": message, **more}}, headers=headers)


async def text_of(model, ask) -> str:
    with pytest.raises(ModelFailure) as caught:
        await model.complete(ask())
    text = str(caught.value)
    assert KEY not in text
    assert "Traceback" not in text
    assert caught.value.__cause__ is None
    return text


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_temporary_failure_is_retried(server, model, ask, fake_sleep, status) -> None:
    server.script = [failure(status, "busy"), GOOD]
    assert (await model.complete(ask())).content == "ok"
    assert fake_sleep.seconds == [0.5]


async def test_retry_delay_doubles_up_to_cap_and_ends(server, make, ask, fake_sleep) -> None:
    server.script = lambda _asked: failure(503, "overloaded")
    model = make(retry=RetryPolicy(patience_seconds=18.5, base_seconds=1, cap_seconds=5))
    text = await text_of(model, ask)
    assert fake_sleep.seconds == [1, 2, 4, 5, 5, 1.5]
    assert "HTTP 503" in text
    assert "Tried 7 times" in text
    assert "overloaded" in text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 402])
async def test_permanent_failure_is_not_retried(server, model, ask, fake_sleep, status) -> None:
    server.script = [failure(status, "no"), GOOD]
    await text_of(model, ask)
    assert len(server.asked) == 1
    assert fake_sleep.seconds == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": format_datetime(datetime(2026, 5, 1, 12, 0, 20, tzinfo=UTC), usegmt=True)}, 20),
        ({"retry-after": "soon"}, 0),
    ],
)
async def test_retry_after_header_sets_delay(server, make, ask, fake_sleep, headers, seconds) -> None:
    server.script = [failure(429, "slow down", headers=headers), GOOD]
    now = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC).timestamp()
    await make(clock=lambda: now).complete(ask())
    assert fake_sleep.seconds == [seconds + 0.5]


async def test_retry_after_above_patience_fails_at_once_and_names_the_time(server, model, ask, fake_sleep) -> None:
    server.script = [failure(429, "slow down", headers={"retry-after": "3600"}), GOOD]
    assert "3600 seconds" in await text_of(model, ask)
    assert fake_sleep.seconds == []


async def test_account_without_credit_is_not_retried(server, model, ask, fake_sleep) -> None:
    server.script = [failure(429, "You exceeded your current quota", code="insufficient_quota"), GOOD]
    assert "no credit" in await text_of(model, ask)
    assert fake_sleep.seconds == []


async def test_wrong_key_error_names_setting_without_key(server, model, ask) -> None:
    server.script = [failure(401, f"Incorrect API key provided: {KEY}", code="invalid_api_key")]
    text = await text_of(model, ask)
    assert "refused the API key (API_KEY)" in text
    assert "Incorrect API key provided" in text


async def test_forbidden_model_error_quotes_server_without_key(server, model, ask) -> None:
    server.script = [failure(403, f"key {KEY} has no access to this model")]
    text = await text_of(model, ask)
    assert "(API_KEY)" in text
    assert "this model" in text


@pytest.mark.parametrize(
    "answer",
    [
        failure(404, "The model `test-model` does not exist", code="model_not_found"),
        failure(400, "Invalid model: model 'test-model' not found, try pulling it first"),
        Status(status=404, body="<html><body><h1>404</h1></body></html>"),
    ],
)
async def test_unknown_model_or_route_error_names_both_settings(server, model, ask, answer) -> None:
    server.script = [answer]
    text = await text_of(model, ask)
    assert "MODEL_NAME" in text
    assert "API_BASE" in text
    assert server.url not in text
    assert "<" not in text


@pytest.mark.parametrize(
    "answer",
    [
        failure(400, "This model's maximum context length is 8192 tokens.", code="context_length_exceeded"),
        failure(
            400, "the request exceeds the available context size, try increasing it", type="exceed_context_size_error"
        ),
        failure(400, "prompt is too long: 210000 tokens > 200000 maximum"),
        failure(413, "too many tokens"),
    ],
)
async def test_too_long_conversation_error_says_so(server, model, ask, answer) -> None:
    server.script = [answer]
    text = await text_of(model, ask)
    assert "too long" in text
    assert "MODEL_NAME" in text


async def test_filtered_content_error_says_so(server, model, ask) -> None:
    server.script = [failure(400, "The response was filtered", code="content_filter")]
    assert "refused this content" in await text_of(model, ask)


async def test_quoted_server_text_is_bounded_without_key_or_traceback(server, model, ask) -> None:
    message = f"bad \x1b[31m{KEY} \n\n" + "x" * 5_000
    server.script = [failure(400, message), failure(400, "broken Traceback (most recent call last): File /srv/x.py")]
    text = await text_of(model, ask)
    assert len(text) < 500
    assert "\x1b" not in text
    assert "\n" not in text
    assert "/srv" not in await text_of(model, ask)


@pytest.mark.parametrize("body", ["<!DOCTYPE html><html>Bad gateway</html>", "upstream error", ""])
async def test_html_error_page_is_not_quoted(server, make, ask, body) -> None:
    server.script = [Status(status=502, body=body)]
    text = await text_of(make(retry=RetryPolicy(patience_seconds=0)), ask)
    assert "HTTP 502" in text
    assert "<" not in text


@pytest.mark.parametrize(
    "broken",
    [
        Reply(text="half of it", size=3, cut_after=2),
        Reply(calls=[Call("a", {"x": "long"})], size=3, cut_after=3),
        Raw(pieces=[b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n']),
        Raw(pieces=[b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n', b'data: {"choices":[{"del\n\n']),
        Raw(
            pieces=[b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n', b'data: {"error":{"message":"boom"}}\n\n']
        ),
        Raw(pieces=[b'data: {"choices":[{"delta":{"content":"half"},"finish_reason":"error"}]}\n\ndata: [DONE]\n\n']),
    ],
)
async def test_broken_stream_is_retried_with_restart(server, model, ask, listener, fake_sleep, broken) -> None:
    server.script = [broken, GOOD]
    reply = await model.complete(ask(), listener=listener)
    assert reply.content == "ok"
    assert listener.restarts == 1
    assert listener.pieces == ["ok"]
    assert fake_sleep.seconds == [0.5]


async def test_refused_parameter_after_a_part_of_the_reply_restarts_listener(server, model, ask, listener) -> None:
    report = b'data: {"error":{"code":400,"message":"temperature is not supported"}}\n\n'
    server.script = [Raw(pieces=[b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n', report]), GOOD]
    await model.complete(ask(), listener=listener)
    assert (listener.restarts, listener.pieces) == (1, ["ok"])


@pytest.mark.parametrize(
    "broken", [Reply(cut_after=0, text="x"), Raw(pieces=[]), Raw(pieces=[b"data: {\n\n"]), Raw(pieces=[b'{"choices'])]
)
async def test_broken_stream_without_deltas_is_retried_silently(server, model, ask, listener, broken) -> None:
    server.script = [broken, GOOD]
    await model.complete(ask(), listener=listener)
    assert listener.restarts == 0


async def test_permanent_error_inside_stream_is_not_retried(server, model, ask) -> None:
    server.script = [Raw(pieces=[b'data: {"error":{"message":"too long","code":"context_length_exceeded"}}\n\n']), GOOD]
    assert "too long for the model" in await text_of(model, ask)


async def test_failure_after_finish_reason_keeps_reply(server, model, ask) -> None:
    finished = b'data: {"choices":[{"delta":{"content":"whole"},"finish_reason":"stop"}]}\n\n'
    server.script = [Raw(pieces=[finished], cut=True)]
    assert (await model.complete(ask())).content == "whole"


async def test_reply_after_done_does_not_wait_for_connection_end(server, model, ask) -> None:
    finished = b'data: {"choices":[{"delta":{"content":"whole"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    server.script = [Raw(pieces=[finished], hang=True), GOOD]
    async with asyncio.timeout(30):
        assert (await model.complete(ask())).content == "whole"
    assert (await model.complete(ask())).content == "ok"


async def test_call_after_close_fails(server, make, ask) -> None:
    model = make()
    server.script = [GOOD]
    await model.complete(ask())
    await model.close()
    assert "stopping" in await text_of(model, ask)


@pytest.mark.parametrize("after", [0, 2])
async def test_silence_times_out_and_is_retried(server, make, ask, listener, after) -> None:
    model = make(timeout_seconds=0.3)
    server.script = [Reply(text="something", size=3, hang_after=after), GOOD]
    assert (await model.complete(ask(), listener=listener)).content == "ok"
    assert listener.restarts == (1 if after else 0)


async def test_repeated_timeout_error_names_seconds(server, make, ask) -> None:
    server.script = [Reply(text="x", hang_after=0)]
    model = make(timeout_seconds=0.3, retry=RetryPolicy(patience_seconds=0))
    text = await text_of(model, ask)
    assert "sent nothing for 0.3 seconds" in text


async def test_slow_reply_that_continues_does_not_time_out(server, make, ask) -> None:
    server.script = [Reply(text="abcdefgh", size=1, delay=0.05)]
    assert (await make(timeout_seconds=0.3).complete(ask())).content == "abcdefgh"


async def test_stream_of_comments_only_times_out(server, make, ask) -> None:
    server.script = [Raw(pieces=[b": still loading\n\n"] * 1_000_000)]
    model = make(timeout_seconds=0.02, retry=RetryPolicy(patience_seconds=0))
    assert "sent nothing" in await text_of(model, ask)


@pytest.mark.parametrize("scheme", ["", "http", "socks5"])
async def test_unreachable_server_error_has_no_address_and_the_log_has_it(
    make, ask, fake_sleep, caplog, monkeypatch, scheme
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if scheme:
        monkeypatch.setenv("http_proxy", f"{scheme}://user:secret@127.0.0.1:{port}")
    model = make(base_url=f"http://user:secret@127.0.0.1:{port}/v1")
    text = await text_of(model, ask)
    assert text.startswith("The model's server cannot be reached (connection refused): try again later.")
    assert "API_BASE" in text
    assert "127.0.0.1" not in text
    assert str(port) not in text
    assert caplog.records[-1].server == f"http://127.0.0.1:{port}/v1"
    assert "secret" not in text + caplog.text
    assert sum(fake_sleep.seconds) == 120


async def test_quoted_error_has_no_internal_address_and_the_log_has_it(server, model, ask, caplog) -> None:
    said = "connect to http://vllm-2:8000/v1 failed, see https://docs.example/errors"
    server.script = [Status(status=400, body={"error": {"message": said}})]
    text = await text_of(model, ask)
    assert "The server said: connect to [address] failed, see https://docs.example/errors" in text
    assert said in caplog.records[-1].error


@pytest.mark.parametrize(
    "answer",
    [
        Raw(pieces=[b"<html>welcome</html>"], content_type="text/html"),
        Raw(pieces=[b'{"status":"fine"}'], content_type="application/json"),
    ],
)
async def test_server_without_chat_api_error_names_api_base(server, model, ask, answer) -> None:
    server.script = [answer]
    text = await text_of(model, ask)
    assert "API_BASE" in text
    assert "<" not in text


@pytest.mark.parametrize("key", ["sk-ключ", "sk\n1"])
async def test_key_that_cannot_be_sent_error_names_setting(make, ask, key) -> None:
    assert "API_KEY cannot be used" in await text_of(make(api_key=key), ask)


async def test_invalid_address_error_names_setting(make, ask) -> None:
    assert "API_BASE cannot be used" in await text_of(make(base_url="http://host:port/v1"), ask)


@pytest.mark.parametrize("after", [0, 2])
async def test_cancellation_closes_connection(server, model, ask, listener, after) -> None:
    server.script = [Reply(text="a long story", size=3, hang_after=after)]
    task = asyncio.create_task(model.complete(ask(), listener=listener))
    assert await asyncio.to_thread(server.wait_for, 1)
    if after:
        await listener.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.asked[0].disconnected.wait, 0.5)


async def test_call_after_cancelled_call_succeeds(server, model, ask, listener) -> None:
    server.script = [Reply(text="a long story", size=3, hang_after=1), GOOD]
    task = asyncio.create_task(model.complete(ask(), listener=listener))
    await listener.heard.wait()
    task.cancel()
    await asyncio.wait([task])
    assert (await model.complete(ask())).content == "ok"


async def test_cancellation_during_retry_delay_ends_call(server, make, ask) -> None:
    waiting = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    server.script = [failure(503), GOOD]
    task = asyncio.create_task(make(sleep=sleep).complete(ask()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(server.asked) == 1


async def test_hundred_concurrent_calls_succeed(server, model, ask) -> None:
    server.script = lambda _asked: Reply(text="abc", size=1, delay=0.05)
    replies = await asyncio.wait_for(asyncio.gather(*(model.complete(ask()) for _ in range(100))), 10)
    assert {reply.content for reply in replies} == {"abc"}
