"""The encoder sends every transcript in a form that the strictest server takes, with a stable prefix."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.external.llm import ModelRequest
from app.domain.models.message import (
    AssistantMessage,
    Message,
    ProviderFields,
    SystemMessage,
    ToolCall,
    ToolMessage,
    Transcript,
    UserMessage,
)
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import Image, ToolSpec
from app.infrastructure.llm.request_encoder import (
    BRIDGE,
    CONTINUE,
    EMPTY,
    MAX_INVALID_ARGUMENTS,
    NO_RESULT,
    PICTURES,
    Dialect,
    RequestEncoder,
)
from tests.support.strict_server import violation

PROFILE = ModelProfile(model="m", identity="m at here")
LOOK = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})
PICTURE = Image(media_type="image/jpeg", base64="/9j/", width=1, height=1)
SYSTEM = SystemMessage(content="s")


def encoder(**profile: Any) -> RequestEncoder:
    return RequestEncoder(profile=ModelProfile(**{"model": "m", "identity": "m at here", **profile}), temperature=0)


def encode(
    *messages: Message, tools: Sequence[ToolSpec] = (), dialect: Dialect | None = None, **profile: Any
) -> dict[str, Any]:
    """Return the body of a request with a new encoder, after checking that the strictest server takes it."""
    request = ModelRequest(transcript=Transcript(messages), tools=tools)
    body = orjson.loads(encoder(**profile).encode(request, dialect or Dialect()))
    known = frozenset({"reasoning_content", "extra_content"})
    assert not violation(body, extra_fields=known)
    return body


def call(call_id: str = "a", name: str = "look", arguments: str = "{}") -> ToolCall:
    return ToolCall(id=call_id, name=name, arguments=arguments)


def turn(*calls: ToolCall, **more: Any) -> AssistantMessage:
    return AssistantMessage(tool_calls=calls, **more)


def result(call_id: str = "a", content: str = "seen", *images: Image) -> ToolMessage:
    return ToolMessage(tool_call_id=call_id, content=content, images=images)


def user(content: str = "u") -> UserMessage:
    return UserMessage(content=content)


def shape(body: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the role and text of each message; of an assistant's turn with calls, their number."""
    return [(m["role"], len(m["tool_calls"]) if m.get("tool_calls") else m["content"]) for m in body["messages"]]


USER, ASSISTANT, OK, MORE = ("user", "u"), ("assistant", "a"), ("assistant", BRIDGE), ("user", CONTINUE)
SAID = AssistantMessage(content="a")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(), user()], [USER, OK, USER]),
        ([user(), SAID, SAID, user()], [USER, ASSISTANT, MORE, ASSISTANT, USER]),
        ([SAID, user()], [MORE, ASSISTANT, USER]),
        ([user(), SAID], [USER, ASSISTANT, MORE]),
        ([], [MORE]),
        ([user(), turn(call()), result(), user()], [USER, ("assistant", 1), ("tool", "seen"), OK, USER]),
        ([user(), turn(call()), result(), SAID, user()], [USER, ("assistant", 1), ("tool", "seen"), ASSISTANT, USER]),
        ([user(), turn(call()), user()], [USER, ("assistant", 1), ("tool", NO_RESULT), OK, USER]),
        ([user(), turn(call())], [USER, ("assistant", 1), ("tool", NO_RESULT)]),
        ([user(), result(), SAID, result(), user()], [USER, ASSISTANT, USER]),
        ([user(), turn(call()), result(), result()], [USER, ("assistant", 1), ("tool", "seen")]),
        ([user(), SYSTEM], [USER, OK, ("user", "s")]),
        ([user(" \n"), AssistantMessage()], [("user", EMPTY), ("assistant", EMPTY), MORE]),
        ([user(), turn(call()), result("a", "")], [USER, ("assistant", 1), ("tool", EMPTY)]),
    ],
)
def test_turns_that_do_not_fit_together_are_separated(
    messages: list[Message], expected: list[tuple[str, object]]
) -> None:
    assert shape(encode(SYSTEM, *messages)) == [("system", "s"), *expected]
    assert shape(encode(*messages)) == expected


def test_call_ids_are_replaced_in_calls_and_results() -> None:
    long = "x" * 85
    messages = encode(
        user(),
        turn(call("same"), call("same")),
        result("same", "1"),
        result("same", "2"),
        turn(call(""), call(long)),
        result(long, "4"),
        result("", "3"),
    )["messages"]
    ids = [item["id"] for message in messages for item in message.get("tool_calls", ())]
    assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == [
        ids[0],
        ids[1],
        ids[3],
        ids[2],
    ]


@pytest.mark.parametrize(
    ("name", "sent"), [("python.run", "python_run"), ("", "unnamed"), ("n" * 90, "n" * 64), ("größe 2", "gr__e_2")]
)
def test_invalid_function_name_is_made_valid(name: str, sent: str) -> None:
    message = encode(user(), turn(call(name=name)), result())["messages"][1]
    assert message["tool_calls"][0]["function"]["name"] == sent


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '"x"', '{"a": NaN}', '{"a": "\\ud83d"}', "x" * 9_000])
def test_malformed_arguments_are_shown_to_the_model(arguments: str) -> None:
    message = encode(user(), turn(call(arguments=arguments)), result())["messages"][1]
    shown = json.loads(message["tool_calls"][0]["function"]["arguments"])["invalid_json"]
    assert shown.removesuffix("…") == arguments[:MAX_INVALID_ARGUMENTS]


@pytest.mark.parametrize(("arguments", "sent"), [('{ "a":1 }', '{ "a":1 }'), ("", "{}"), (" ", "{}")])
def test_valid_arguments_are_sent_unchanged(arguments: str, sent: str) -> None:
    message = encode(user(), turn(call(arguments=arguments)), result())["messages"][1]
    assert message["tool_calls"][0]["function"]["arguments"] == sent


def test_lone_surrogates_are_sent_as_after_a_restart() -> None:
    """The store replaces them by U+FFFD."""
    body = encode(
        user("a\udcffb \ud83d\ude00"),
        turn(call("\udcff", "n\udcff", '{"a": "\udcff"}')),
        result("\udcff", "\udcff"),
        AssistantMessage(
            content="x", provider_fields=ProviderFields(source="m at here", message={"reasoning_content": "\udcff"})
        ),
        user(),
    )
    assert body["messages"][0]["content"] == "a\ufffdb 😀"
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": "\ufffd"}'
    assert body["messages"][3]["reasoning_content"] == "\ufffd"


def test_request_without_tools_offers_a_placeholder_only_after_calls() -> None:
    assert "tools" not in encode(user())
    offered = encode(user(), turn(call()), result(), user())["tools"]
    assert [tool["function"]["name"] for tool in offered] == ["no_function"]
    offered = encode(user(), turn(call()), result(), tools=(LOOK,))["tools"]
    assert [tool["function"]["name"] for tool in offered] == ["look"]


FIELDS = ProviderFields(
    source="m at here",
    message={"reasoning_content": "I think.", "role": "x", "content": "x", "tool_calls": "x", "tool_call_id": "x"},
    calls=(
        {"extra_content": {"google": {"thought_signature": "s"}}, "id": "x", "type": "x", "function": "x"},
        {"function": {"extra_content": "f", "name": "x", "arguments": "x"}},
    ),
)


def test_provider_fields_are_sent_back_without_overriding_the_turn() -> None:
    message = encode(user(), turn(call("a"), call("b"), provider_fields=FIELDS), result("a"), result("b"))["messages"][
        1
    ]
    assert message["reasoning_content"] == "I think."
    assert message["content"] is None
    first, second = message["tool_calls"]
    assert first["extra_content"] == {"google": {"thought_signature": "s"}}
    assert second.keys() == first.keys() - {"extra_content"}
    assert second["function"] == {"extra_content": "f", "name": "look", "arguments": "{}"}


@pytest.mark.parametrize(
    "options", [{"identity": "other at here"}, {"dialect": Dialect(provider_fields=False)}], ids=["other", "refused"]
)
def test_provider_fields_are_not_sent_to_another_model_or_a_server_that_refuses_them(options: dict[str, Any]) -> None:
    message = encode(user(), turn(call(), provider_fields=FIELDS), result(), **options)["messages"][1]
    assert "reasoning_content" not in message
    assert "extra_content" not in message["tool_calls"][0]


def test_dialect_that_changes_applies_to_messages_that_were_encoded_before() -> None:
    shared = encoder()
    request = ModelRequest(transcript=Transcript([user(), turn(call(), provider_fields=FIELDS), result()]))
    assert b"I think." in shared.encode(request, Dialect())
    assert b"I think." not in shared.encode(request, Dialect(provider_fields=False))


def test_pictures_follow_all_results_of_their_turn() -> None:
    conversation = (
        user(),
        turn(call("a"), call("b")),
        result("a", "one", PICTURE),
        result("b", "two", PICTURE),
        turn(call()),
        result(),
    )
    pictures = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/"}}
    assert encode(*conversation, vision=True)["messages"][4:6] == [
        {"role": "assistant", "content": BRIDGE},
        {"role": "user", "content": [{"type": "text", "text": PICTURES}, pictures, pictures]},
    ]
    assert b"image_url" not in orjson.dumps(encode(*conversation, vision=False))


def test_turn_of_several_calls_is_split_for_a_model_without_parallel_calls() -> None:
    calls = [call("a"), call("b"), call("c")]
    body = encode(
        user(),
        turn(*calls, content="Look.", provider_fields=replace(FIELDS, calls=({}, {"extra_content": "b"}))),
        *(result("c", "3"), result("a", "1"), result("b", "2"), user()),
        parallel_calls=False,
    )
    assert not violation(body, extra_fields=frozenset({"reasoning_content", "extra_content"}), parallel_calls=False)
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        *(("user", "u"), ("assistant", "Look."), ("tool", "1"), ("assistant", None), ("tool", "2")),
        *(("assistant", None), ("tool", "3"), ("assistant", BRIDGE), ("user", "u")),
    ]
    assert [m.get("reasoning_content") for m in body["messages"][1:6:2]] == ["I think.", None, None]
    assert body["messages"][3]["tool_calls"][0]["extra_content"] == "b"


def test_limit_of_a_request_overrides_the_limit_of_the_profile() -> None:
    transcript = Transcript([user()])
    bodies = [
        orjson.loads(encoder(max_tokens=10).encode(ModelRequest(transcript=transcript, max_tokens=limit), Dialect()))
        for limit in (None, 20)
    ]
    assert [body["max_tokens"] for body in bodies] == [10, 20]


TEXTS = st.one_of(st.sampled_from(["", " ", "text", "\udcff", "é😀"]), st.text(max_size=5))
IDS = st.sampled_from(["", "a", "b", "c00000001", "x" * 85])
PROVIDED = st.one_of(
    st.none(),
    st.builds(
        ProviderFields,
        source=st.sampled_from(["m at here", "other"]),
        message=st.dictionaries(
            st.sampled_from(["role", "content", "reasoning_content"]), st.one_of(TEXTS, st.none(), st.just(2**70))
        ),
        calls=st.lists(st.dictionaries(st.sampled_from(["id", "extra_content"]), TEXTS), max_size=2).map(tuple),
    ),
)
CALLS = st.builds(
    ToolCall,
    id=IDS,
    name=st.one_of(st.sampled_from(["look", "python.run", ""]), TEXTS),
    arguments=st.one_of(st.sampled_from(["{}", "", "{", '{"a": 1}', "[]"]), TEXTS),
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(SystemMessage, content=TEXTS),
    st.builds(UserMessage, content=TEXTS),
    st.builds(
        AssistantMessage,
        content=TEXTS,
        tool_calls=st.lists(CALLS, max_size=3).map(tuple),
        provider_fields=PROVIDED,
    ),
    st.builds(ToolMessage, tool_call_id=IDS, content=TEXTS, images=st.lists(st.just(PICTURE), max_size=2).map(tuple)),
)


EXCHANGES = st.integers(1, 3).map(
    lambda count: [
        turn(*(call(f"id{n}") for n in range(count)), provider_fields=FIELDS),
        *(result(f"id{n}", "r", PICTURE) for n in reversed(range(count))),
    ]
)
"""Turns with a result for each call, as a run has them."""


@given(st.lists(st.one_of(MESSAGES.map(lambda message: [message]), EXCHANGES), max_size=8), *[st.booleans()] * 3)
def test_any_transcript_is_valid_and_extends_the_request_before(
    groups: list[list[Message]], vision: bool, parallel_calls: bool, offers: bool
) -> None:
    tools = (LOOK,) if offers else ()
    shared = encoder(vision=vision, parallel_calls=parallel_calls)
    transcript = Transcript()
    sent: list[bytes] = []
    for group in groups:
        transcript.append(*group)
        body = shared.encode(ModelRequest(transcript=transcript, tools=tools), Dialect())
        again = ModelRequest(transcript=Transcript(transcript.since(0)), tools=tools)
        assert encoder(vision=vision, parallel_calls=parallel_calls).encode(again, Dialect()) == body
        known = frozenset({"reasoning_content", "extra_content"})
        assert not violation(orjson.loads(body), extra_fields=known, parallel_calls=parallel_calls)
        if offers:  # without functions, the first call adds the placeholder in front of the messages
            assert all(body.startswith(earlier) for earlier in sent)
        if len(group) > 1 or isinstance(group[0], UserMessage):  # what a run sends ends with a user's turn or a result
            sent.append(body[:-2])
