"""Errors of real model servers, in their shapes and wordings: what the user is told, and what the service learns."""

import asyncio

import orjson
import pytest

from app.domain.errors import ContextTooLong, MalformedReply, ModelFailure
from app.domain.external.llm import ModelRequest
from app.domain.models.message import AssistantMessage, ToolCall, ToolMessage, Transcript, UserMessage
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import Image
from tests.contract.llm.conftest import KEY
from tests.fakes.scripted_openai import Raw, Reply, Status

GOOD = Reply(text="ok")
HALF = b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'


def error(status: int, message: str, /, **more: object) -> Status:
    """Return a refusal in the usual shape."""
    return Status(status=status, body={"error": {"message": message, **more}})


async def failure_of(model, ask, kind: type[ModelFailure] = ModelFailure) -> ModelFailure:
    """Return the failure of a call, which must be of class `kind`."""
    with pytest.raises(ModelFailure) as caught:
        await model.complete(ask())
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    return caught.value


class Counts:
    """A `ModelObserver` that keeps what it is told."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.tokens: list[int] = []
        self.first: list[float] = []

    def failed(self, kind: str) -> None:
        self.kinds.append(kind)

    def first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def replied(self, usage) -> None:
        self.tokens.append(usage.prompt_tokens)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the reason"}},
        {"error": "the reason"},
        {"error": ["the reason"]},
        {"error": {"message": {"detail": "the reason"}}},
        {"error": True, "message": "the reason"},
        {"error_type": "x", "error_message": "the reason"},
        {"error_code": 17, "error_msg": "the reason"},
        {"errorMessage": "the reason"},
        {"detail": "the reason"},
        {"detail": [{"loc": ["body", "model"], "msg": "the reason", "type": "value_error"}]},
        {"detail": {"error": {"message": "the reason"}}},
        {"details": "the reason", "code": 400},
        {"errors": ["the reason"]},
        {"errors": [{"msg": "the reason"}]},
        {"errors": {"model": ["the reason"]}},
        {"object": "error", "message": "the reason", "code": 400},
        {"code": "Bad", "msg": "the reason"},
        {"status": 400, "title": "the reason"},
        {"reason": "the reason"},
        {"message": '{"error":{"message":"the reason"}}'},
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error":{"message":"the reason"}}'}}},
        {"error": {"message": "Provider returned error", "metadata": {"raw": "the reason"}}},
        [{"error": {"code": 400, "message": "the reason", "status": "INVALID_ARGUMENT"}}],
        "the reason",
        'data: {"error":{"message":"the reason"}}\n\n',
        'event: error\ndata: {"message":"the reason"}\n\n',
    ],
)
async def test_reason_is_quoted_from_every_shape_of_body(server, model, ask, body) -> None:
    server.script = [Status(status=400, body=body)]
    text = str(await failure_of(model, ask))
    assert "refused the request (HTTP 400). The server said: " in text
    assert "the reason" in text


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"the reason","code":400}}',
        b'data: {"error":"the reason","code":400}',
        b'data: {"error_type":"invalid_request_error","error_message":"the reason"}',
        b'event: error\ndata: {"code":400,"details":"the reason"}',
        b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"the reason"}}',
        b'error: {"code":400,"message":"the reason"}',
        b'data: {"object":"error","message":"the reason","code":400}',
        b'{"error":{"code":400,"message":"the reason"}}',
        b'data: {"base_resp":{"status_code":400,"status_msg":"the reason"}}',
        b'data: {"__type":"ValidationException","code":400,"Message":"the reason"}',
        b'{\n  "error": {"code": 400, "message": "the reason"}\n}',
        b'data: {"choices":[{"error":{"code":400,"message":"the reason"},"finish_reason":"error"}]}',
    ],
)
@pytest.mark.parametrize("before", [b"", HALF, b": waiting\n\n"])
async def test_reason_is_quoted_from_every_shape_of_error_in_a_stream(server, model, ask, event, before) -> None:
    server.script = [Raw(pieces=[before, event + b"\n\n"]), GOOD]
    assert "refused the request (HTTP 400). The server said: the reason" in str(await failure_of(model, ask))


async def test_reason_is_quoted_from_a_list_of_errors_with_status_200(server, model, ask) -> None:
    server.script = [Raw(pieces=[b'[{"error":{"code":400,"message":"the reason","status":"INVALID_ARGUMENT"}}]'])]
    assert "refused the request (HTTP 400). The server said: the reason" in str(await failure_of(model, ask))


async def test_error_event_with_plain_text_is_retried_and_quoted(server, model, ask) -> None:
    server.script = lambda _asked: Raw(pieces=[b"event: error\ndata: worker died\n\n"])
    assert "The server said: worker died" in str(await failure_of(model, ask))
    assert len(server.asked) == 5


TOO_LONG = [
    ("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.", 8192),
    ("Your input exceeds the context window of this model. Please adjust your input and try again.", None),
    ("Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.", 272000),
    ("prompt is too long: 210000 tokens > 200000 maximum", 200_000),
    (
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease input length or "
        "`max_tokens` and try again",
        200_000,
    ),
    ("The input token count (1196265) exceeds the maximum number of tokens allowed (1048576).", 1_048_576),
    ("Unable to submit request because the input token count is 40000 but model only supports up to 32768.", 32768),
    ("Input is too long for requested model.", None),
    ("The model returned the following errors: Input tokens exceeded", None),
    ("Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", 32768),
    (
        "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens. Please "
        "reduce the length of the input messages.",
        4096,
    ),
    ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 4096),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is 8192 "
        "tokens and your request has 7000 input tokens (2000 > 8192 - 7000).",
        8192,
    ),
    ("request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it", 8192),
    ("the request exceeds the available context size, try increasing it", None),
    ("input is too large to process. increase the physical batch size", None),
    ("prompt too long; exceeded max context length by 1000 tokens", None),
    ("the input length exceeds the context length", None),
    (
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context "
        "length of only 4096 tokens, which is not enough.",
        4096,
    ),
    ("The number of tokens to keep from the initial prompt is greater than the context length.", None),
    ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens", 4096),
    ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", 4096),
    ("Requested token count exceeds the model's maximum context length of 4096 tokens.", 4096),
    ("Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192", 8192),
    ("Range of input length should be [1, 129024]", 129_024),
    ("Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)", 8192),
    ("Prompt 超长", None),
    ("too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4200.", 4081),
    (
        "size limit exceeded by 1234 tokens. Try using shorter inputs. The limit for this model is 128000 tokens",
        128_000,
    ),
    ("This endpoint's maximum context length is 131072 tokens. However, you requested about 200000 tokens.", 131_072),
    ("This model's maximum prompt length is 131072 but the request contains 200000 tokens.", 131_072),
    ("prompt token count of 100000 exceeds the limit of 64000", 64_000),
    ("invalid params, context window exceeds limit", None),
    ("Input length 300000 exceeds the maximum allowed input length of 262,144 tokens.", 262_144),
    ("Prompt has 150,000 tokens, but the configured context size is 128,000 tokens", 128_000),
    ("The prompt is too long: 30000, model maximum context length: 16384", 16384),
    ("the number of input tokens 5000 cannot exceed the total tokens limit 4096 for this model", 4096),
    ("tokens in request more than max tokens allowed", None),
    ("token limit exceeded for this model", None),
    ("Request body too large for gpt-4o model. Max size: 8000 tokens.", 8000),
]


@pytest.mark.parametrize(("message", "limit"), TOO_LONG)
async def test_every_wording_of_a_context_that_is_too_long_is_recognized(server, make, ask, message, limit) -> None:
    observer = Counts()
    server.script = [error(400, message), GOOD]
    failure = await failure_of(make(observer=observer), ask, ContextTooLong)
    assert isinstance(failure, ContextTooLong)
    assert failure.limit_tokens == limit
    assert "too long for the model test-model" in str(failure)
    assert observer.kinds == ["context"]


@pytest.mark.parametrize(
    "answer",
    [
        Status(status=413, body=""),
        Status(status=413, body="<html>413 Request Entity Too Large</html>"),
        error(400, "too much", code="context_length_exceeded"),
        error(500, "too much", code=500, type="exceed_context_size_error"),
        error(
            413, "Request too large on tokens per minute (TPM): Limit 6000, Requested 9000", code="rate_limit_exceeded"
        ),
        error(
            429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 31000.", type="tokens"
        ),
        Raw(pieces=[b'data: {"error":{"message":"too much","code":"context_length_exceeded"}}\n\n']),
    ],
)
async def test_context_that_is_too_long_is_recognized_by_status_and_code(server, model, ask, answer) -> None:
    server.script = [answer, GOOD]
    await failure_of(model, ask, ContextTooLong)


KINDS = [
    (error(400, "Your credit balance is too low to access the API."), "credit", "no credit left"),
    (error(429, "You exceeded your current quota, please check your plan and billing details."), "credit", "no credit"),
    (error(429, "余额不足或无可用资源包,请充值。", code="1113"), "credit", "no credit left"),
    (error(429, "Your account is suspended due to insufficient balance"), "credit", "no credit left"),
    (error(403, "Your team has used all available credits or reached its spending limit"), "credit", "no credit left"),
    (error(400, "Access denied, make sure your account is in good standing.", code="Arrearage"), "credit", "no credit"),
    (error(402, "This request requires more credits, or fewer max_tokens."), "credit", "no credit left"),
    (error(400, "API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT"), "auth", "the API key"),
    (error(401, "No auth credentials found"), "auth", "refused the API key (API_KEY)"),
    (error(403, "Key may not use this model", code="permission_denied"), "auth", "(API_KEY) may not use the model"),
    (error(403, "Input flagged", metadata={"reasons": ["violence"]}), "filter", "refused this content"),
    (error(403, "Country, region, or territory not supported"), "request", "country or region"),
    (error(400, "User location is not supported for the API use."), "request", "country or region"),
    (Status(status=403, body="error code: 1010"), "request", "A proxy or firewall"),
    (Status(status=403, body="<html><title>Access denied</title></html>"), "request", "A proxy or firewall"),
    (error(400, "Content Exists Risk"), "filter", "refused this content"),
    (error(400, "Input data may contain inappropriate content.", code="data_inspection_failed"), "filter", "content"),
    (error(400, "The prompt was filtered", code="content_filter"), "filter", "refused this content"),
    (error(404, "No endpoints found that support tool use."), "request", "cannot call tools"),
    (error(400, "registry.ollama.ai/library/x does not support tools"), "request", "cannot call tools"),
    (error(500, "tools param requires --jinja flag"), "request", "cannot call tools"),
    (error(400, "The model `x` does not exist"), "request", "check MODEL_NAME"),
    (error(400, "messages: roles must alternate"), "request", "refused the request (HTTP 400)"),
    (error(502, "messages: roles must alternate", type="invalid_request_error"), "request", "refused the request"),
    (error(502, "Incorrect API key provided"), "auth", "API_KEY"),
    (error(500, "no", code="invalid_api_key"), "auth", "API_KEY"),
    (error(502, "bad", code=400), "request", "refused the request (HTTP 400)"),
    (Status(status=400, body="<html><title>No &amp; never</title></html>"), "request", "The server said: No & never"),
]


@pytest.mark.parametrize(("answer", "kind", "headline"), KINDS)
async def test_final_failure_has_its_kind_and_headline(server, make, ask, fake_sleep, answer, kind, headline) -> None:
    observer = Counts()
    server.script = [answer, GOOD]
    assert headline in str(await failure_of(make(observer=observer), ask))
    assert observer.kinds == [kind]
    assert fake_sleep.seconds == []


@pytest.mark.parametrize(
    ("answer", "kind", "waiting"),
    [
        (error(429, "slow down"), "rate_limit", "limits requests (HTTP 429)"),
        (error(400, "Rate exceeded", code="ThrottlingException"), "rate_limit", "limits requests"),
        (error(503, "Loading model", type="unavailable_error"), "overloaded", "loads the model (HTTP 503)"),
        (error(529, "Overloaded", type="overloaded_error"), "overloaded", "overloaded"),
        (Status(status=502, body="<html>Bad gateway</html>"), "overloaded", "is not ready (HTTP 502)"),
        (error(500, "internal"), "other", "failed (HTTP 500)"),
        (Raw(pieces=[b'data: {"error":{"message":"busy","type":"overloaded_error"}}\n\n']), "overloaded", "overloaded"),
        (Raw(pieces=[HALF], cut=True), "broken", "broke off"),
    ],
)
async def test_temporary_failure_is_retried_and_told(
    server, make, ask, listener, fake_sleep, answer, kind, waiting
) -> None:
    observer = Counts()
    server.script = [answer, GOOD]
    await make(observer=observer).complete(ask(), listener=listener)
    assert observer.kinds == [kind]
    assert observer.tokens == [11]
    assert len(observer.first) == 1
    assert [seconds for _, seconds in listener.waits] == fake_sleep.seconds
    assert waiting in listener.waits[0][0]
    assert "trying again" in listener.waits[0][0]


@pytest.mark.parametrize(
    ("body", "headers", "seconds"),
    [
        ({"error": {"message": "Rate limit reached. Please try again in 14.2s. Visit x"}}, {}, 14.2),
        ({"error": {"message": "Please try again in 1m3s."}}, {}, 63),
        ({"error": {"message": "Please try again in 350ms."}}, {}, 0.35),
        ({"error": {"message": "Please retry after 6 seconds."}}, {}, 6),
        ({"error": {"message": "Rate limit", "retry_after": 9}}, {}, 9),
        (
            [{"error": {"code": 429, "message": "You exceeded your current quota, please check your plan and billing "
                        "details.", "status": "RESOURCE_EXHAUSTED", "details": [{"@type": "x", "retryDelay": "14s"}]}}],
            {},
            14,
        ),
        ({"error": {"message": "limited", "metadata": {"headers": {"Retry-After": "8"}}}}, {}, 8),
        ("", {"x-ratelimit-reset-requests": "1m0s", "x-ratelimit-remaining-requests": "0"}, 60),
        (
            "",
            {
                "x-ratelimit-reset-requests": "90s",
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-tokens": "20s",
                "x-ratelimit-remaining-tokens": "0",
            },
            20,
        ),
        ("", {"anthropic-ratelimit-requests-reset": "2026-05-01T12:00:30Z"}, 30),
        ("", {"x-ratelimit-reset": "1777636840000"}, 40),
    ],
)  # fmt: skip
async def test_wait_that_the_server_asks_for_is_kept(server, make, ask, fake_sleep, body, headers, seconds) -> None:
    server.script = [Status(status=429, body=body, headers=headers), GOOD]
    await make(clock=lambda: 1_777_636_800).complete(ask())
    assert fake_sleep.seconds == pytest.approx([seconds + 0.5])


@pytest.mark.parametrize(
    ("answer", "generated"),
    [
        (error(400, "m", code="tool_use_failed", failed_generation="<function=x>"), "<function=x>"),
        (error(400, "Failed to parse tool call arguments as JSON", code="invalid_request_error"), ""),
        (error(400, "tool call validation failed: parameters for tool x did not match schema"), ""),
        (error(500, "Failed to parse input at pos 12: <tool_call>"), ""),
        (Status(status=500, body={"error": "error parsing tool call: raw='{\"a\": ', err=unexpected end"}), '{"a": '),
        (error(400, "Model generated an invalid tool call: Expecting ',' delimiter"), ""),
        (error(424, "Model produced invalid sequence as part of ToolUse."), ""),
        (Reply(text="x", finish="MALFORMED_FUNCTION_CALL"), ""),
        (Reply(text="x", finish="malformed_function_call"), ""),
        (Raw(pieces=[HALF, b'data: {"error":{"code":"tool_use_failed","failed_generation":"{x"}}\n\n']), "{x"),
    ],
)
async def test_malformed_call_that_the_server_reports_is_left_to_the_caller(
    server, make, ask, answer, generated
) -> None:
    observer = Counts()
    server.script = [answer, GOOD]
    failure = await failure_of(make(observer=observer), ask, MalformedReply)
    assert isinstance(failure, MalformedReply)
    assert failure.generated == generated
    assert observer.kinds == ["malformed"]


async def test_text_before_a_final_failure_is_discarded(server, model, ask, listener) -> None:
    server.script = [Raw(pieces=[HALF, b'data: {"error":{"code":"tool_use_failed"}}\n\n'])]
    with pytest.raises(MalformedReply):
        await model.complete(ask(), listener=listener)
    assert (listener.pieces, listener.restarts) == ([], 1)


def refuse_parameter(name: str, answer: Status):
    """Return a script of a server that refuses requests with the parameter `name`."""
    return lambda asked: answer if name in asked.body else GOOD


@pytest.mark.parametrize(
    "message",
    [
        "invalid temperature: only 1 is allowed for this model",
        "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) is supported.",
        "`temperature` may only be set to 1 when thinking is enabled.",
        "`temperature` is deprecated for this model.",
        "Unsupported parameter: 'temperature' is not supported with this model.",
    ],
)
async def test_temperature_that_is_refused_is_left_out_from_then_on(server, make, ask, message) -> None:
    observer = Counts()
    model, other = make(observer=observer), make()
    server.script = refuse_parameter("temperature", error(400, message))
    await model.complete(ask())
    await model.complete(ask())
    await other.complete(ask())
    assert ["temperature" in asked.body for asked in server.asked] == [True, False, False, True, False]
    assert observer.kinds == ["parameter"]


OUTPUT_LIMITS = [
    ("max_tokens is too large: 9000. This model supports at most 4096 completion tokens, whereas you gave 9000.", 4096),
    ("'max_tokens' or 'max_completion_tokens' is too large: 9000. Maximum value is 4096", 4096),
    ("Range of max_tokens should be [1, 4096]", 4096),
    ("Invalid max_tokens value, the valid range of max_tokens is [1, 4096]", 4096),
    ("`max_tokens` must be less than or equal to `4096`, the maximum value for `max_tokens`", 4096),
    ("max_tokens: 9000 > 4096, which is the maximum allowed number of output tokens for x", 4096),
    ("The maximum tokens you requested exceeds the model limit of 4096. Try again with a lower value", 4096),
    ("max_tokens is too large", 4500),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 8192 "
        "tokens and your request has 100 input tokens (9000 > 8192 - 100).",
        4096,
    ),
]


@pytest.mark.parametrize(("message", "limit"), OUTPUT_LIMITS)
async def test_length_of_reply_that_is_refused_is_lowered_from_then_on(server, make, ask, message, limit) -> None:
    model = make(max_tokens=9_000)
    server.script = lambda asked: error(400, message) if asked.body["max_tokens"] > limit else GOOD
    await model.complete(ask())
    await model.complete(ask())
    assert [asked.body["max_tokens"] for asked in server.asked] == [9_000, limit, limit]
    assert model.profile.output_limit == limit


async def test_length_of_reply_that_is_always_refused_fails_with_the_reason(server, make, ask) -> None:
    server.script = lambda _asked: error(400, "max_tokens is too large for you")
    text = str(await failure_of(make(max_tokens=2_000), ask))
    assert "lower MAX_TOKENS" in text
    assert "too large for you" in text
    assert [asked.body["max_tokens"] for asked in server.asked] == [2_000, 1_000, 500, 256]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Failed to deserialize: messages[2]: unknown variant `image_url`, expected `text`"),
        (404, "No endpoints found that support image input"),
        (400, "At most 0 image(s) may be provided in one prompt."),
        (400, "This model is not a multimodal model"),
        (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
        (422, "Could not process image"),
    ],
)
async def test_pictures_that_are_refused_are_left_out_from_then_on(server, make, status, message) -> None:
    image = Image(media_type="image/jpeg", base64="/9j/", width=1, height=1)
    conversation = [
        UserMessage(content="Look."),
        AssistantMessage(tool_calls=(ToolCall(id="a", name="browser_view", arguments="{}"),)),
        ToolMessage(tool_call_id="a", content="seen", images=(image,)),
    ]
    model = make(profile=ModelProfile(model="m", vision=True))
    server.script = lambda asked: error(status, message) if b"image_url" in asked.raw else GOOD
    for _ in range(2):
        await model.complete(ModelRequest(transcript=Transcript(conversation)))
    assert [b"image_url" in asked.raw for asked in server.asked] == [True, False, False]
    assert not model.profile.vision


async def test_refusal_that_names_pictures_is_final_for_a_model_that_does_not_see(server, model, ask) -> None:
    server.script = lambda _asked: error(400, "image input is not supported")
    await failure_of(model, ask)
    assert len(server.asked) == 1


ECHO = {"stream_options": {"include_usage": True}, "temperature": 0.7, "max_completion_tokens": "unsupported"}


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [{"loc": ["body", "messages", 3, "content"], "msg": "unsupported", "input": ECHO}]},
        {"detail": [{"loc": ["body", "messages"], "msg": "not allowed"}], "body": ECHO},
        {"message": f"[{{'loc': ('body', 'messages'), 'msg': 'Extra inputs are not permitted', 'input': {ECHO}}}]"},
        {"error": {"message": f"messages: not supported [type=extra_forbidden, input_value={ECHO}, input_type=dict]"}},
        {"error": {"message": f"unsupported. Request: {orjson.dumps(ECHO).decode()}"}},
    ],
)
async def test_nothing_is_learnt_from_a_repeated_request(server, model, ask, body) -> None:
    server.script = [Status(status=422, body=body), GOOD]
    await failure_of(model, ask)
    await model.complete(ask())
    assert server.asked[1].body.keys() >= {"stream_options", "temperature", "max_tokens"}


async def test_server_that_wants_single_calls_gets_them_from_then_on(server, model) -> None:
    calls = tuple(ToolCall(id=str(number), name="look", arguments="{}") for number in range(2))
    results = [ToolMessage(tool_call_id=call.id, content="seen") for call in calls]
    transcript = Transcript([UserMessage(content="u"), AssistantMessage(tool_calls=calls), *results])

    def script(asked):
        is_single = all(len(message.get("tool_calls") or ()) < 2 for message in asked.messages)
        return GOOD if is_single else error(400, "This model only supports single tool-calls at once!")

    server.script = script
    assert (await model.complete(ModelRequest(transcript=transcript))).content == "ok"


async def test_refusal_after_learning_fails_with_the_reason(server, model, ask) -> None:
    server.script = lambda _asked: error(400, "temperature is not supported, whatever you send")
    assert "whatever you send" in str(await failure_of(model, ask))
    assert len(server.asked) == 2


async def test_concurrent_refusals_of_one_parameter_are_learnt_by_all(server, model, ask) -> None:
    server.script = refuse_parameter("temperature", error(400, "temperature is not supported"))
    replies = await asyncio.gather(*(model.complete(ask()) for _ in range(5)))
    assert [reply.content for reply in replies] == ["ok"] * 5


@pytest.mark.parametrize("path", ["/v1?api-version=1", "/v1/?api-version=1", "/v1/chat/completions?api-version=1"])
async def test_query_of_api_base_is_sent_after_the_path(server, make, ask, path) -> None:
    server.script = [GOOD]
    await make(base_url=server.url.removesuffix("/v1") + path).complete(ask())
    assert (server.asked[0].path, server.asked[0].query) == ("/v1/chat/completions", "api-version=1")
    assert server.asked[0].headers["api-key"] == KEY


async def test_address_query_and_user_of_api_base_are_not_shown(server, make, ask) -> None:
    server.script = [error(400, "no")]
    address = server.url.replace("http://", "http://user:secret@") + "?key=hidden"
    model = make(base_url=address)
    text = str(await failure_of(model, ask))
    assert server.asked and "127.0.0.1" not in text
    assert "secret" not in text + model.profile.identity
    assert "hidden" not in text + model.profile.identity


async def test_error_names_the_keys_of_a_profile_in_the_file(server, make, ask) -> None:
    profile = ModelProfile(name="fast", model="test-model")
    model = make(profile=profile, in_file=True)
    server.script = [error(401, "no"), error(404, "no such model")]
    assert "(api_key_env of the profile fast)" in str(await failure_of(model, ask))
    assert "check model of the profile fast and base_url of the profile fast" in str(await failure_of(model, ask))


async def test_unknown_host_is_given_up_soon(make, ask, fake_sleep) -> None:
    text = str(await failure_of(make(base_url="http://host.invalid/v1"), ask))
    assert "unknown host" in text
    assert len(fake_sleep.seconds) == 2


async def test_replies_that_break_off_in_their_middle_are_retried_a_few_times(server, model, ask) -> None:
    server.script = lambda _asked: Reply(text="half of it", size=3, cut_after=2)
    assert "broke off" in str(await failure_of(model, ask))
    assert len(server.asked) == 5


async def test_server_that_restarts_for_a_minute_is_waited_for(server, model, ask, fake_sleep) -> None:
    server.script = lambda _asked: GOOD if sum(fake_sleep.seconds) > 60 else error(503, "Loading model")
    assert (await model.complete(ask())).content == "ok"
