"""Requests that OpenAIModel sends."""

import asyncio
import subprocess
import sys
from itertools import pairwise
from types import MappingProxyType

from app.domain.external.llm import ModelRequest
from app.domain.models.message import (
    AssistantMessage,
    ToolCall,
    ToolMessage,
    Transcript,
    UserMessage,
)
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm import request_encoder
from app.infrastructure.llm.request_encoder import Dialect, RequestEncoder
from tests.fakes.scripted_openai import Reply, Status

TOOL = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})


async def test_request_contains_model_settings_key_and_messages(server, model, ask) -> None:
    server.script = [Reply(text="Hi.")]
    await model.complete(ask("Grüße 👋"))
    asked = server.asked[0]
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer sk-test-0123456789abcdef"
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {
        "model": "test-model",
        "temperature": 0.7,
        "max_tokens": 2000,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 👋"}],
    }


async def test_tool_calls_and_results_have_wire_format(server, model) -> None:
    server.script = [Reply(text="Fine.")]
    call = ToolCall(id="c1", name="look", arguments='{"at": 1}')
    transcript = Transcript(
        [
            UserMessage(content="u"),
            AssistantMessage(tool_calls=(call,)),
            ToolMessage(tool_call_id="c1", content="seen"),
            AssistantMessage(content="thinking", tool_calls=(call,)),
            ToolMessage(tool_call_id="c1", content="seen again"),
        ]
    )
    await model.complete(ModelRequest(transcript=transcript, tools=(TOOL,)))
    function = {"name": "look", "arguments": '{"at": 1}'}
    assert server.asked[0].messages == [
        {"role": "user", "content": "u"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c00000001", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c00000001", "content": "seen"},
        {
            "role": "assistant",
            "content": "thinking",
            "tool_calls": [{"id": "c00000002", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c00000002", "content": "seen again"},
    ]
    assert server.asked[0].body["tools"] == [
        {
            "type": "function",
            "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
        }
    ]


async def test_request_extends_previous_request_byte_for_byte(server, model, ask) -> None:
    server.script = lambda _asked: Reply(text="Go on.")
    request = ask()
    request = ModelRequest(transcript=request.transcript, tools=(TOOL,))
    for number in range(3):
        await model.complete(request)
        request.transcript.append(AssistantMessage(content="Go on."), UserMessage(content=f"More {number}"))
    bodies = [asked.raw for asked in server.asked]
    assert all(later.startswith(earlier[:-2]) for earlier, later in pairwise(bodies))
    assert [len(asked.messages) for asked in server.asked] == [2, 4, 6]


def test_encoder_encodes_only_added_messages(monkeypatch) -> None:
    seen: list[str] = []
    real = request_encoder._EncodedTranscript.add
    monkeypatch.setattr(
        request_encoder._EncodedTranscript,
        "add",
        lambda self, message: seen.append(message.content) or real(self, message),
    )
    encoder = RequestEncoder(profile=ModelProfile(), temperature=0)
    transcript = Transcript([UserMessage(content=str(n)) for n in range(1_000)])
    encoder.encode(ModelRequest(transcript=transcript), Dialect())
    seen.clear()
    transcript.append(UserMessage(content="new"))
    encoder.encode(ModelRequest(transcript=transcript), Dialect())
    assert seen == ["new"]


def test_encoder_drops_cache_of_collected_transcript() -> None:
    encoder = RequestEncoder(profile=ModelProfile(), temperature=0)
    encoder.encode(ModelRequest(transcript=Transcript([UserMessage(content="x")])), Dialect())
    assert len(encoder._transcripts) == 0


async def test_lone_surrogate_and_mapping_parameters_are_encoded(server, model) -> None:
    server.script = [Reply(text="ok")]
    spec = ToolSpec(name="t", description="", parameters=MappingProxyType({"type": "object"}))
    await model.complete(ModelRequest(transcript=Transcript([UserMessage(content="a\udcffb")]), tools=(spec,)))
    assert server.asked[0].messages[0]["content"] == "a\ufffdb"


async def test_refused_stream_options_are_left_out_from_then_on(server, model, ask, fake_sleep) -> None:
    def script(asked):
        if "stream_options" in asked.body:
            return Status(status=400, body={"detail": [{"loc": ["body", "stream_options"], "msg": "extra field"}]})
        return Reply(text="ok")

    server.script = script
    assert (await model.complete(ask())).content == "ok"
    assert (await model.complete(ask())).content == "ok"
    assert ["stream_options" in asked.body for asked in server.asked] == [True, False, False]
    assert fake_sleep.seconds == []


async def test_refused_max_tokens_and_temperature_are_replaced(server, model, ask) -> None:
    def script(asked):
        if "max_tokens" in asked.body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return Status(status=400, body={"error": {"message": text, "param": "max_tokens"}})
        if "temperature" in asked.body:
            text = "Unsupported value: 'temperature' does not support 0.7. Only the default (1) value is supported."
            return Status(status=400, body={"error": {"message": text, "param": "temperature"}})
        return Reply(text="ok")

    server.script = script
    await model.complete(ask())
    await model.complete(ask())
    assert len(server.asked) == 4
    assert server.asked[-1].body["max_completion_tokens"] == 2000


async def test_concurrent_first_calls_share_one_sdk_client(server, make, ask) -> None:
    server.script = lambda _asked: Reply(text="ok")
    model = make()
    replies = await asyncio.gather(*(model.complete(ask()) for _ in range(5)))
    assert [reply.content for reply in replies] == ["ok"] * 5


def test_sdk_is_not_imported_before_first_call() -> None:
    code = (
        "import sys; from app.infrastructure.llm.openai_model import OpenAIModel; "
        "from app.infrastructure.llm.demo import DemoModel; "
        "OpenAIModel(api_key='k', base_url='http://x/v1', model='m'); print('openai' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
