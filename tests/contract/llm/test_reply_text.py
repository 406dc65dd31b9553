"""Calls and thinking that arrive as text, whole and in pieces."""

import time
from typing import Any

import orjson
import pytest

from app.domain.external.llm import ModelReply
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.reply import ReplyBuilder
from tests.contract.llm.conftest import Listener
from tests.fakes.scripted_openai import Call, Raw, Reply


def tool(name: str, **types: str) -> ToolSpec:
    properties = {key: {"type": value} for key, value in types.items()}
    return ToolSpec(name=name, description="", parameters={"type": "object", "properties": properties})


TOOLS = (tool("shell_exec", command="string", n="integer"), tool("file_write", content="string"))
SIZES = (1, 3, 1_000)
ARGUMENTS: dict[str, Any] = {"command": "ls", "n": 1}
JSON = '{"name": "shell_exec", "arguments": {"command": "ls", "n": 1}}'
INPUT = '{"command": "ls", "n": 1}'
INVOKE = (
    '<invoke name="shell_exec">\n<parameter name="command">ls</parameter>\n<parameter name="n">1</parameter>\n</invoke>'
)
FUNCTION = "<function=shell_exec>\n<parameter=command>\nls\n</parameter>\n<parameter=n>\n1\n</parameter>\n</function>"
PAIRS = "<arg_key>command</arg_key>\n<arg_value>ls</arg_value>\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>"
BAR, LOW = "\uff5c", "\u2581"


def deepseek(call: str) -> str:
    calls = f"<|tool_calls_begin|><|tool_call_begin|>{call}<|tool_call_end|><|tool_calls_end|>"
    return (
        calls.replace("|", BAR)
        .replace("_begin", f"{LOW}begin")
        .replace("_end", f"{LOW}end")
        .replace("tool_", f"tool{LOW}")
    )


MARKUP = {
    "Hermes, Qwen": f"<tool_call>\n{JSON}\n</tool_call>",
    "Hermes without its end": f"<tool_call>\n{JSON}",
    "a list": f"<tool_calls>[{JSON}]</tool_calls>",
    "a Python dictionary": "<tool_call>{'name': 'shell_exec', 'arguments': {'command': 'ls', 'n': 1}}</tool_call>",
    "Qwen coder": f"<tool_call>\n{FUNCTION}\n</tool_call>",
    "Qwen coder without markup around": FUNCTION,
    "Qwen coder that lost its first tag": f"{FUNCTION}\n</tool_call>",
    "Mistral": f"[TOOL_CALLS] [{JSON}]",
    "Mistral, later": f"[TOOL_CALLS]shell_exec[CALL_ID]abc123456[ARGS]{INPUT}",
    "Mistral, without tokens": f"[TOOL_CALLS]shell_exec{INPUT}",
    "Llama": f'<|python_tag|>{{"type": "function", "name": "shell_exec", "parameters": {INPUT}}}<|eom_id|>',
    "Llama, Python": '<|python_tag|>shell_exec.call(command="ls", n=1)',
    "Llama, function": f"<function=shell_exec>{INPUT}</function>",
    "DeepSeek R1": deepseek(f"function<{BAR}tool_sep{BAR}>shell_exec\n```json\n{INPUT}\n```"),
    "DeepSeek V3.1": deepseek(f"shell_exec<{BAR}tool_sep{BAR}>{INPUT}"),
    "DeepSeek V3.2": f"<{BAR}DSML{BAR}function_calls>\n{INVOKE}\n</{BAR}DSML{BAR}function_calls>".replace(
        "<invoke", f"<{BAR}DSML{BAR}invoke"
    ).replace("</invoke", f"</{BAR}DSML{BAR}invoke"),
    "Kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.shell_exec:0<|tool_call_argument_begin|>"
    f"{INPUT}<|tool_call_end|><|tool_calls_section_end|>",
    "GLM": f"<tool_call>shell_exec\n{PAIRS}\n</tool_call>",
    "GLM in one line": f"<tool_call>shell_exec{PAIRS}</tool_call>".replace("\n", ""),
    "function_calls": f"<function_calls>\n{INVOKE}\n</function_calls>",
    "MiniMax": f"<minimax:tool_call>\n{INVOKE}\n</minimax:tool_call>",
    "invoke": INVOKE,
    "functools": f"functools[{JSON}]",
    "Gemma": '<tool_code>\nprint(default_api.shell_exec(command="ls", n=1))\n</tool_code>',
    "Gemma, fenced": '```tool_code\nshell_exec(command="ls", n=1)\n```',
    "a block of code": f"```tool_call\n{JSON}\n```",
    "Granite": f"<|tool_call|>[{JSON}]",
    "Nemotron": f"<TOOLCALL>[{JSON}]</TOOLCALL>",
    "LFM": '<|tool_call_start|>[shell_exec(command="ls", n=1)]<|tool_call_end|>',
    "Cohere": f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "shell_exec", "args": {INPUT}}}]<|END_ACTION|>',
    "OLMo": '<function_calls>\nshell_exec(command="ls", n=1)\n</function_calls>',
    "tool_use": f"<tool_use>\n<name>shell_exec</name>\n<arguments>{INPUT}</arguments>\n</tool_use>",
    "tool_request": f"[TOOL_REQUEST]{JSON}[END_TOOL_REQUEST]",
}
DATA = {
    "JSON": JSON,
    "parameters": JSON.replace("arguments", "parameters"),
    "JSON in a block": f"```json\n{JSON}\n```",
    "JSON in an unnamed block": f"```\n{JSON}\n```",
    "markup in a block": f"```xml\n<tool_call>\n{JSON}\n</tool_call>\n```",
    "a list": f"[{JSON}]",
    "OpenAI": orjson.dumps(
        {"tool_calls": [{"type": "function", "function": {"name": "shell_exec", "arguments": INPUT}}]}
    ).decode(),
    "name as key": f'{{"shell_exec": {INPUT}}}',
    "Python": '[shell_exec(command="ls", n=1)]',
    "action": f"Action: shell_exec\nAction Input: {INPUT}\nObservation: a file",
    "an element with JSON": f"<shell_exec>{INPUT}</shell_exec>",
    "an element with elements": "<shell_exec>\n<command>ls</command>\n<n>1</n>\n</shell_exec>",
}


def read(
    text: str, size: int, tools: tuple[ToolSpec, ...] = TOOLS, *, finish: str = "stop"
) -> tuple[ModelReply, Listener]:
    listener = Listener()
    builder = ReplyBuilder(listener, tools=tools)  # type: ignore[arg-type]
    for start in range(0, len(text), size):
        builder.feed({"choices": [{"delta": {"content": text[start : start + size]}}]})
    builder.feed({"choices": [{"delta": {}, "finish_reason": finish}]})
    return builder.finish(), listener


def calls_of(reply: ModelReply) -> list[tuple[str, Any]]:
    return [(call.name, orjson.loads(call.arguments)) for call in reply.tool_calls]


@pytest.mark.parametrize("text", [*MARKUP.values(), *DATA.values()], ids=[*MARKUP, *(f"plain {name}" for name in DATA)])
def test_call_as_text_becomes_tool_call_and_is_not_shown(text) -> None:
    for size in SIZES:
        for before in ("", "I will look.\n\n"):
            reply, listener = read(before + text, size)
            assert calls_of(reply) == [("shell_exec", ARGUMENTS)]
            assert (reply.content, reply.finish, reply.text_calls) == (before.strip(), "tool_calls", True)
            assert ("".join(listener.pieces).strip(), listener.restarts) == (before.strip(), 0)


@pytest.mark.parametrize("text", MARKUP.values(), ids=MARKUP)
def test_markup_is_dropped_when_no_function_is_offered(text) -> None:
    for size in SIZES:
        reply, listener = read(f"Done.\n{text}", size, ())
        assert (reply.content, reply.tool_calls, reply.text_calls) == ("Done.", (), True)
        assert ("".join(listener.pieces).strip(), listener.restarts) == ("Done.", 0)


@pytest.mark.parametrize("text", DATA.values(), ids=DATA)
def test_data_is_text_when_no_function_is_offered(text) -> None:
    reply, listener = read(text, 3, ())
    assert (reply.content, "".join(listener.pieces), reply.text_calls) == (text, text, False)


def test_several_calls_as_text_keep_their_order_and_the_text_around_them() -> None:
    other = '<tool_call>{"name": "file_write", "arguments": {"content": "</tool_call> ```\\n"}}</tool_call>'
    reply, _ = read(f"First.\n<tool_call>{JSON}</tool_call>\n{other}\nThen more.", 3)
    assert calls_of(reply) == [("shell_exec", ARGUMENTS), ("file_write", {"content": "</tool_call> ```\n"})]
    assert reply.content.split() == ["First.", "Then", "more."]


def test_parameter_of_type_string_is_not_decoded() -> None:
    text = '<function=file_write>\n<parameter=content>\n{"a": 1}\n\n</parameter>\n</function>'
    assert calls_of(read(text, 3)[0]) == [("file_write", {"content": '{"a": 1}\n'})]


def test_json_at_the_end_of_a_sentence_is_a_call() -> None:
    reply, listener = read(f"I will look: {JSON}", 3)
    assert (reply.content, calls_of(reply)) == ("I will look:", [("shell_exec", ARGUMENTS)])
    assert "".join(listener.pieces).strip() == "I will look:"


def test_unknown_function_in_markup_is_a_call() -> None:
    reply, _ = read('<tool_call>{"name": "web_find", "arguments": {}}</tool_call>', 3)
    assert calls_of(reply) == [("web_find", {})]


def test_broken_arguments_in_markup_reach_the_caller() -> None:
    reply, _ = read('<tool_call>{"name": "shell_exec", "arguments": {"command": "a "b""}}</tool_call>', 3)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("shell_exec", '{"command": "a "b""}')]


def test_call_as_text_that_was_cut_off_keeps_its_finish() -> None:
    reply, listener = read('<tool_call>{"name": "file_write", "arguments": {"content": "abc', 3, finish="length")
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("file_write", '{"content": "abc')]
    assert (reply.finish, listener.pieces) == ("length", [])


def test_markup_that_cannot_be_understood_is_reported_and_not_shown() -> None:
    reply, listener = read('<tool_call>{"x" = "y"}</tool_call>', 3)
    assert (reply.content, reply.tool_calls, reply.text_calls, listener.pieces) == ("", (), True, [])


TEXTS = [
    "the reasoning ends with the tag `</think>` and then the answer follows",
    "the reasoning ends with the tag </think> and then the answer follows",
    "Models write <think> and </think> around thoughts, and <tool_call> tags around calls.",
    "<think> and </think> mark the reasoning.",
    "The tag </think>\nis prose. <thinkpad> is none.",
    f"```\n<think>\nx\n</think>\n<tool_call>\n{JSON}\n</tool_call>\n```\nThis is the format.",
    f"An example:\n\n```xml\n<tool_call>\n{JSON}\n</tool_call>\n```\n\nThat is all.",
    "~~~html\n<thinking>\n~~~",
    f"The format:\n\n    <think>\n    x\n    </think>\n    <tool_call>\n    {JSON}\n    </tool_call>\n",
    f"The format:\n\n\t{JSON}",
    '{"name": "Bob", "age": 3}',
    '{"name": "other_tool", "arguments": {"x": 1}}',
    '```json\n{"name": "Bob", "arguments": ["a"]}\n```',
    'The function:\n\n{"name": "shell_exec", "parameters": {"type": "object", "properties": {}}}',
    "[1, 2, 3]\n[4] [link](http://x) and a < b > c, x <y, <b>bold</b>, if a<b: print(x[0])",
    "Say `a ` b` and ``x`y``. It's a ` tick.\nNext <tool_call> here.",
    'See <function=name> in the docs. And <invoke name="x"> too. functools.partial and functools[...]',
    "Call `[TOOL_CALLS]` or [TOOL_CALLS] or <|python_tag|> tokens; the <|channel|> marker, [THINK] too.",
    'For example <tool_call>{"name": "get_weather", "arguments": {}}</tool_call> calls it.',
    '  text\n    indented {\n  [x]\n{\n  "name": "x"\n}\nand more\n',
    "Action: reboot\nAction Input: {}",
    "<other_tool>\n<x>1</x>\n</other_tool> and <shell_exec> and so on",
    'The answer is {"name": "shell_exec", "arguments": {}} in the log.',
    "Text ends with <",
    "Text ends with `",
    "Fence:\n```python\nx = 1\n",
    "   ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_mentions_tags_is_unchanged(text) -> None:
    for size in SIZES:
        for tools in (TOOLS, ()):
            reply, listener = read(text, size, tools)
            assert (reply.content, reply.tool_calls, reply.text_calls) == (text, (), False)
            assert "".join(listener.pieces) == text


THOUGHTS = {
    "<think>Hm.</think>Yes": "Yes",
    "\n<think>\nHm.\n</think>\n\nYes": "Yes",
    "<thinking>Hm</thinking> Yes": "Yes",
    "<thought>Hm</thought>\nYes": "Yes",
    "<reasoning>Hm</reasoning>\nYes": "Yes",
    "<Reflection>Hm</Reflection>\nYes": "Yes",
    "[THINK]Hm[/THINK]Yes": "Yes",
    "\u25c1think\u25b7Hm\u25c1/think\u25b7Yes": "Yes",
    "<|begin_of_thought|>Hm<|end_of_thought|>\n<|begin_of_solution|>Yes<|end_of_solution|>": "Yes",
    "<|START_THINKING|>Hm<|END_THINKING|><|START_RESPONSE|>Yes<|END_RESPONSE|>": "Yes",
    "<|channel>thought\nHm, <b>\n<channel|>Yes": "Yes",
    "<|channel>thought\n<channel|>Yes": "Yes",
    "<think>Hm</think><think>Hm</think>Yes": "Yes",
    "<think>Hm, the tag `</think>` ends it</think>Yes": "Yes",
    "<think>Hm ```py\nx\n</think>Yes, `</think>`": "Yes, `</think>`",
    "<think>Hm": "",
    "  <thinking>\nHm, so `x`": "",
    "Sure.\n<thinking>\nHm\n</thinking>\nYes": "Sure.\n\nYes",
    "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Yes<|return|>": "Yes",
    "<|channel|>analysis<|message|>Hm": "",
    "<think>Hm</think>\nThe tag </think> and <think> too\n</think>": "The tag </think> and <think> too\n</think>",
}


@pytest.mark.parametrize(("text", "expected"), THOUGHTS.items())
def test_thinking_is_not_part_of_the_text(text, expected) -> None:
    for size in SIZES:
        reply, listener = read(text, size)
        assert (reply.content, reply.text_calls) == (expected, False)
        assert ("".join(listener.pieces).strip(), listener.restarts) == (expected, 0)


OPEN_THOUGHTS = ["Hm.\n</think>\n\nYes", "Hm.</think>\n\nYes", "Hm</think>Yes", "</think>\n\nYes", "Hm.\n[/THINK]Yes"]


@pytest.mark.parametrize("text", OPEN_THOUGHTS)
def test_thinking_that_the_prompt_opened_is_taken_back(text) -> None:
    for size in SIZES:
        reply, listener = read(text, size)
        assert (reply.content, "".join(listener.pieces)) == ("Yes", "Yes")


async def test_thinking_that_the_prompt_opens_is_held_back_once_known(server, model, ask, listener) -> None:
    server.script = [Reply(text=f"Hm.\n</think>\n\n{text}", size=3) for text in ("One", "Two")] + [Reply(text="Three")]
    assert (await model.complete(ask())).content == "One"
    for text in ("Two", "Three"):
        listener.pieces.clear()
        assert (await model.complete(ask(), listener=listener)).content == text
        assert ("".join(listener.pieces), listener.restarts) == (text, 0)


def test_calls_of_gpt_oss_in_channels_are_tool_calls() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>"
        f"<|start|>assistant<|channel|>commentary to=functions.shell_exec <|constrain|>json<|message|>{INPUT}<|call|>"
    )
    for size in SIZES:
        reply, listener = read(text, size)
        assert (reply.content, calls_of(reply)) == ("I will look.", [("shell_exec", ARGUMENTS)])
        assert "".join(listener.pieces) == "I will look."


@pytest.mark.parametrize("thought", ["<think>Hm.</think>\n\n", "<think>Hm.\n", "Hm.\n</think>\n"])
def test_call_as_text_after_thinking_or_within_unclosed_thinking_is_a_call(thought) -> None:
    reply, listener = read(f"{thought}<tool_call>\n{JSON}\n</tool_call>", 3)
    assert (reply.content, calls_of(reply), listener.pieces) == ("", [("shell_exec", ARGUMENTS)], [])


async def test_call_in_reasoning_that_was_not_ended_is_a_call(server, model, ask, listener) -> None:
    reasoning = f"I should look.\n<tool_call>{JSON}</tool_call>"
    chunks = [{"delta": {"reasoning_content": reasoning}}, {"delta": {}, "finish_reason": "stop"}]
    server.script = [Raw(pieces=[b"data: " + orjson.dumps({"choices": [chunk]}) + b"\n\n" for chunk in chunks])]
    reply = await model.complete(ask(tools=TOOLS), listener=listener)
    assert (calls_of(reply), reply.text_calls, listener.pieces) == ([("shell_exec", ARGUMENTS)], True, [])


async def test_calls_of_the_server_win_over_their_markup(server, model, ask, listener) -> None:
    server.script = [Reply(text=f"Yes.\n<tool_call>{JSON}</tool_call>", calls=[Call("shell_exec", ARGUMENTS)], size=4)]
    reply = await model.complete(ask(tools=TOOLS), listener=listener)
    assert (reply.content, len(reply.tool_calls), reply.text_calls) == ("Yes.", 1, False)
    assert "".join(listener.pieces).strip() == "Yes."


async def test_listener_receives_arguments_of_a_call_as_text(server, model, ask, listener) -> None:
    server.script = [Reply(text=f"<tool_call>{JSON}</tool_call>", size=4)]
    await model.complete(ask(tools=TOOLS), listener=listener)
    assert [(name, orjson.loads(text)) for name, text in listener.calls] == [("shell_exec", ARGUMENTS)]


@pytest.mark.parametrize(
    "text",
    [
        "[TOOL_CALLS]" + "[" * 900 + "]" * 900,
        "<tool_call>{\n" * 3_000,
        "<function=a> " * 3_000,
        "<think>" * 3_000,
        "[" * 20_000,
        "` `` " * 3_000,
        "[a(" + "x," * 9_000,
        "<function=" + "a" * 100_000,
        "\n{" * 50_000,
        "\n[a(" * 50_000,
        "x\n" + "<think>a\n" * 50_000,
        "x\n" + "<shell_exec>\n" * 50_000,
        "<tool_call>" + "<arg_key>" * 50_000,
        "```" + "a" * 1_000_000,
        "<shell_exec>" + "".join(f"<a{number}>" for number in range(50_000)) + "</shell_exec>",
        "<think></think>x" * 20_000,
    ],
    ids=[
        *("nested", "calls", "blocks", "thoughts", "brackets", "ticks", "Python", "block name", "objects", "lists"),
        *("later thoughts", "elements", "keys", "fence", "open elements", "empty thoughts"),
    ],
)
def test_hostile_text_is_read_in_bounded_time(text) -> None:
    start = time.process_time()
    reply, _ = read(text, 50)
    assert time.process_time() - start < 10
    assert not reply.tool_calls


def test_arguments_that_are_opened_many_times_are_read_in_bounded_time() -> None:
    start = time.process_time()
    reply, _ = read("<tool_call><name>shell_exec</name>" + "<args>" * 50_000 + "</tool_call>", 50)
    assert time.process_time() - start < 10
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("shell_exec", "{}")]
