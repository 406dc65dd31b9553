"""A model whose calls are timed and traced, by the GenAI conventions of OpenTelemetry."""

import json
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from app.application import context
from app.application.run_monitor import MAX_CONTENT, Histogram, RunMonitor
from app.domain.external.llm import LLM, FinishReason, ModelReply, ModelRequest, ReplyListener
from app.domain.external.telemetry import AttributeValue, Span
from app.domain.models.message import AssistantMessage, Message, SystemMessage, ToolMessage
from app.domain.models.model_profile import ModelProfile

_PROVIDERS = {
    "anthropic.com": "anthropic",
    "amazonaws.com": "aws.bedrock",
    "openai.azure.com": "azure.ai.openai",
    "cohere.com": "cohere",
    "deepseek.com": "deepseek",
    "googleapis.com": "gcp.gemini",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "moonshot.ai": "moonshot_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}
"""Well-known values of `gen_ai.provider.name`, by the domain of the server. For others, the API's format counts."""

MAX_MESSAGES = 20
"""Maximum number of messages of one call that a span contains: the newest ones."""

_FINISH_REASONS: dict[FinishReason, str] = {"refused": "content_filter", "tool_calls": "tool_call"}
"""The conventions' names of finish reasons that have another name here."""


class ObservedModel:
    """An `LLM` that passes its calls to another one."""

    def __init__(self, model: LLM, monitor: RunMonitor, *, address: str = "") -> None:
        """Observe `model`. `address`: URL of its server, if it has one."""
        self._model = model
        self._monitor = monitor
        self._server = _server_of(address)

    @property
    def profile(self) -> ModelProfile:
        """Implement `LLM.profile`."""
        return self._model.profile

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """Implement `LLM.complete`."""
        span = self._start(request)
        started, error = time.perf_counter(), ""
        token = context.span.set(span)
        try:
            reply = await self._model.complete(request, listener=listener)
            _describe(span, reply, captures_content=self._monitor.tracer.captures_content)
            error = "refused" if reply.finish == "refused" else ""
            return reply
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            context.span.reset(token)
            times = self._monitor.metrics.model_calls.setdefault(self.profile.name, Histogram())
            times.observe(time.perf_counter() - started)
            span.end(error)

    async def close(self) -> None:
        """Implement `LLM.close`."""
        await self._model.close()

    def _start(self, request: ModelRequest) -> Span:
        profile, tracer = self.profile, self._monitor.tracer
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": profile.model,
            "gen_ai.request.max_tokens": request.max_tokens or profile.max_tokens,
            "gen_ai.conversation.id": context.session_id.get(),
            **self._server,
        }
        if tracer.captures_content:
            attributes["gen_ai.input.messages"] = _as_json(request.transcript.since(-MAX_MESSAGES))
        return tracer.start(f"chat {profile.model}", "client", attributes, parent=self._monitor.parent)


def _server_of(address: str) -> dict[str, AttributeValue]:
    parts = urlsplit(address)
    host = parts.hostname or ""
    domains = (provider for domain, provider in _PROVIDERS.items() if host == domain or host.endswith(f".{domain}"))
    if not host:
        return {"gen_ai.provider.name": "anker.demo"}
    return {"gen_ai.provider.name": next(domains, "openai"), "server.address": host}


def _describe(span: Span, reply: ModelReply, *, captures_content: bool) -> None:
    usage = reply.usage
    attributes: dict[str, AttributeValue] = {
        "gen_ai.response.finish_reasons": (_FINISH_REASONS.get(reply.finish, reply.finish),),
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    if reply.model:
        attributes["gen_ai.response.model"] = reply.model
    if captures_content:
        turn = AssistantMessage(content=reply.content, tool_calls=reply.tool_calls)
        attributes["gen_ai.output.messages"] = _as_json([turn])
    span.set(attributes)


def _as_json(messages: Sequence[Message]) -> str:
    """Return messages in the form of the GenAI conventions, without pictures."""
    return json.dumps([_message(message) for message in messages], ensure_ascii=False)


def _message(message: Message) -> dict[str, object]:
    match message:
        case ToolMessage():
            response = {
                "type": "tool_call_response",
                "id": message.tool_call_id,
                "response": message.content[:MAX_CONTENT],
            }
            return {"role": "tool", "parts": [response]}
        case AssistantMessage():
            calls = [
                {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments[:MAX_CONTENT]}
                for call in message.tool_calls
            ]
            return {"role": "assistant", "parts": [{"type": "text", "content": message.content[:MAX_CONTENT]}, *calls]}
        case _:
            role = "system" if isinstance(message, SystemMessage) else "user"
            return {"role": role, "parts": [{"type": "text", "content": message.content[:MAX_CONTENT]}]}
