"""The rules of the strictest model servers for a request, written without the encoder in mind.

Collected from Mistral, Anthropic and Bedrock behind proxies, OpenAI, and the chat templates of local servers that want
alternating roles. `violation` names the first rule that a request breaks.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import orjson

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_DATA_ADDRESS = re.compile(r"data:image/(?:jpeg|png);base64,([A-Za-z0-9+/=]+)")
_MESSAGE_KEYS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls"},
    "tool": {"role", "content", "tool_call_id"},
}
_BODY_KEYS = {
    "model", "messages", "tools", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens",
}  # fmt: skip


class _Refused(Exception):
    pass


def violation(
    body: Mapping[str, Any], *, extra_fields: frozenset[str] = frozenset(), parallel_calls: bool = True
) -> str:
    """Return which rule a request body breaks; an empty string if none.

    Args:
        body: The request body.
        extra_fields: Fields of messages and calls that the server knows beyond the standard, such as reasoning.
        parallel_calls: Whether a turn may have several calls. Some chat templates refuse them.
    """
    try:
        _require(not (unknown := set(body) - _BODY_KEYS), f"extra fields are not permitted: {unknown}")
        _require(bool(body.get("model")), "model is required")
        for limit in ("max_tokens", "max_completion_tokens"):
            _require(isinstance(body.get(limit, 1), int) and body.get(limit, 1) > 0, f"{limit} must be positive")
        messages = body.get("messages")
        _require(isinstance(messages, list) and bool(messages), "messages must not be empty")
        _check_order(messages)
        for number, message in enumerate(messages):
            _check_message(message, f"messages.{number}", extra_fields)
        _check_calls(messages)
        several = any(len(message.get("tool_calls") or ()) > 1 for message in messages)
        _require(parallel_calls or not several, "this model only supports single tool-calls at once")
        _check_tools(body.get("tools"), has_calls=any(message.get("tool_calls") for message in messages))
    except _Refused as refused:
        return str(refused)
    return ""


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise _Refused(rule)


def _check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    roles = [message.get("role") for message in messages]
    _require(set(roles) <= set(_MESSAGE_KEYS), f"unknown role among {set(roles)}")
    if roles[0] == "system":
        roles.pop(0)
    _require("system" not in roles, "the system message must be the first one")
    _require(roles[:1] == ["user"], "the first message after the system message must be of role user")
    _require(roles[-1] in ("user", "tool"), "the last message must be of role user or tool")
    followers = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
    for role, following in pairwise(roles):
        _require(following in followers[str(role)], f"unexpected role '{following}' after role '{role}'")


def _check_message(message: Mapping[str, Any], where: str, extra_fields: frozenset[str]) -> None:
    role, content = message["role"], message.get("content")
    unknown = set(message) - _MESSAGE_KEYS[role] - extra_fields
    _require(not unknown, f"{where}: extra inputs are not permitted: {unknown}")
    if role == "assistant" and content is None:
        _require(bool(message.get("tool_calls")), f"{where}: an assistant message needs content or tool calls")
    elif role == "user" and isinstance(content, list):
        _require(bool(content), f"{where}: content must not be empty")
        for part in content:
            _check_part(part, where)
    else:
        _require(isinstance(content, str) and bool(content.strip()), f"{where}: text must contain non-whitespace text")
    calls = message.get("tool_calls")
    _require(calls is None or (isinstance(calls, list) and bool(calls)), f"{where}: tool_calls must not be empty")
    for call in calls or ():
        _check_call(call, f"{where}.tool_calls", extra_fields)


def _check_part(part: Mapping[str, Any], where: str) -> None:
    if part.get("type") == "text":
        _require(bool(part["text"].strip()), f"{where}: text must contain non-whitespace text")
        return
    _require(part.get("type") == "image_url", f"{where}: unknown content part {part.get('type')!r}")
    address = _DATA_ADDRESS.fullmatch(part["image_url"]["url"])
    if address is None:
        raise _Refused(f"{where}: the address of a picture must be a data URL of a JPEG or PNG")
    try:
        base64.b64decode(address[1], validate=True)
    except binascii.Error:
        raise _Refused(f"{where}: a picture is not valid base64") from None


def _check_call(call: Mapping[str, Any], where: str, extra_fields: frozenset[str]) -> None:
    unknown = set(call) - {"id", "type", "function"} - extra_fields
    _require(not unknown, f"{where}: extra inputs are not permitted: {unknown}")
    call_id = str(call.get("id"))
    _require(_CALL_ID.fullmatch(call_id) is not None, f"{where}: id {call_id!r} must be nine letters or digits")
    _require(call.get("type") == "function", f"{where}: type must be 'function'")
    name, arguments = call["function"].get("name"), call["function"].get("arguments")
    _require(_NAME.fullmatch(str(name)) is not None, f"{where}: name {name!r} must match ^[a-zA-Z0-9_-]{{1,64}}$")
    try:
        parsed = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        raise _Refused(f"{where}: arguments must be valid JSON: {arguments!r}") from None
    _require(isinstance(parsed, dict), f"{where}: arguments must be a JSON object: {arguments!r}")


def _check_calls(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check that each call has exactly one result, directly after its turn, and that no id is used twice."""
    used: set[str] = set()
    unanswered: set[str] = set()
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            call_id = message.get("tool_call_id")
            _require(call_id in unanswered, f"messages.{number}: unexpected tool_call_id {call_id!r}")
            unanswered.discard(str(call_id))
            continue
        _require(not unanswered, f"messages.{number}: calls without a result before it: {unanswered}")
        for call in message.get("tool_calls") or ():
            _require(call["id"] not in used, f"messages.{number}: the id {call['id']!r} is used twice")
            used.add(call["id"])
            unanswered.add(call["id"])
    _require(not unanswered, f"calls without a result at the end: {unanswered}")


def _check_tools(tools: Any, *, has_calls: bool) -> None:
    _require(not (has_calls and not tools), "a request with tool calls in its messages must have tools")
    _require(tools is None or bool(tools), "tools must not be empty")
    names: list[str] = []
    for tool in tools or ():
        function = tool["function"]
        _require(tool["type"] == "function", "the type of a tool must be 'function'")
        _require(_NAME.fullmatch(function["name"]) is not None, f"tool name {function['name']!r} is invalid")
        _require(function["parameters"].get("type") == "object", f"parameters of {function['name']} must be an object")
        names.append(function["name"])
    _require(len(names) == len(set(names)), "the names of tools must be distinct")
