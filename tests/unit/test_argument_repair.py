"""Slips in a call's arguments: what has one possible meaning is undone, and everything else is told."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from app.domain.services.agents.planner import CreatePlanInput
from app.domain.services.tools.arguments import BadArguments, is_complete, parse_arguments
from app.domain.services.tools.base import CompleteStepInput, RunCall
from app.domain.services.tools.registry import EXECUTING

WRITE = {"file": "a.txt", "content": "x"}
EXEC = {"id": "a", "exec_dir": "~", "command": "ls"}
TYPED = {"id": "a", "input": "[]", "press_enter": True}
COMPLETION = {"success": True, "result": "r"}


def arguments_of(name: str, arguments: str) -> dict[str, Any]:
    """Return the checked arguments of a call, as events show them. Binding a call needs no context."""
    bound = EXECUTING[name].bind(arguments, None)  # type: ignore[arg-type]
    if isinstance(bound, RunCall):
        return dict(bound.args)
    assert isinstance(bound, BaseModel)
    return bound.model_dump(exclude_unset=True)


def plan_of(steps: object) -> list[tuple[str, str]]:
    plan = parse_arguments(CreatePlanInput, json.dumps({"message": "M", "steps": steps}), name="create_plan")
    return [(step.id, step.description) for step in plan.steps]


def test_null_stands_for_an_empty_text_only_where_the_text_may_be_empty() -> None:
    plan = parse_arguments(CreatePlanInput, '{"title": null, "goal": null, "message": "M", "steps": null}')
    assert (plan.title, plan.goal, plan.steps) == ("", "", [])
    assert arguments_of("complete_step", '{"success": true, "result": null}') == {"success": True, "result": ""}
    with pytest.raises(BadArguments, match="content"):
        arguments_of("file_write", '{"file": "a.txt", "content": null}')


@pytest.mark.parametrize(
    "arguments",
    [
        json.dumps(json.dumps(WRITE)),
        json.dumps(json.dumps(json.dumps(WRITE))),
        json.dumps({"arguments": WRITE}),
        json.dumps({"arguments": json.dumps(WRITE)}),
        json.dumps({"parameters": WRITE}),
        json.dumps({"input": WRITE}),
        json.dumps({"file_write": WRITE}),
        json.dumps({"type": "object", "properties": WRITE, "required": ["file"]}),
        json.dumps({"action": "file_write", "action_input": WRITE}),
        json.dumps({"name": "file_write", "arguments": WRITE}),
        json.dumps({"type": "function", "function": {"name": "file_write", "arguments": json.dumps(WRITE)}}),
        json.dumps([WRITE]),
        '{"file":"a.txt","content":"x",}',
        '{"file":"a.txt","content":"x"',
        '{"file":"a.txt","content":"x"}}',
        '{"file":"a.txt","content":"x"}</tool_call>',
        '```json\n{"file":"a.txt","content":"x"}\n```',
        "```\n{'file':'a.txt','content':'x'}```",
        "{file: 'a.txt', content: \"x\"}",
        '{"file":"a.txt",,"content":"x"}',
        '```json\n{"file":"a.txt","content":"x"}\n',
        '{" file": "a.txt", "content": "x", "explanation": null, "thought": "", "extra": {}}',
        '{"file": "a.txt", "content": "x", "append": null, "sudo": "null"}',
        '{"file": "a.txt", "content": "x", "append": [], "sudo": {}, "leading_newline": "None"}',
    ],
)
def test_unambiguous_slip_is_undone(arguments: str) -> None:
    assert arguments_of("file_write", arguments) == WRITE


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("file_write", '{"file":"a","content":"x","append":"True"}', {"file": "a", "content": "x", "append": True}),
        ("file_write", '{"file":"a","content":"x","append":1}', {"file": "a", "content": "x", "append": True}),
        ("file_write", "{'file':'a','content':'x','append':True}", {"file": "a", "content": "x", "append": True}),
        ("file_write", '{"file":"a","content":""}', {"file": "a", "content": ""}),
        ("file_write", '{"file":"a","content":{"k":["v"]}}', {"file": "a", "content": '{"k": ["v"]}'}),
        ("file_read", '{"file":"a","start_line":"3","end_line":""}', {"file": "a", "start_line": 3}),
        ("shell_view", '{"id": 1}', {"id": "1"}),
        ("shell_write_to_process", '{"id":"a","input":"[]","press_enter":"true"}', TYPED),
        ("shell_write_to_process", json.dumps({"name": "n", "input": TYPED}), TYPED),
        ("shell_exec", json.dumps({"name": "shell_exec", "arguments": EXEC}), EXEC),
        ("browser_view", '{"arguments": {}}', {}),
        ("browser_view", "null", {}),
        ("browser_view", "[]", {}),
        ("info_search_web", '{"query":"q","date_range":"Past_Week"}', {"query": "q", "date_range": "past_week"}),
        ("info_search_web", '{"query":"q","date_range":""}', {"query": "q"}),
        ("message_notify_user", '{"text":["a","b"]}', {"text": '["a", "b"]'}),
        ("complete_step", '{"success":"true","result":"r","plan_changes":"null"}', COMPLETION),
        ("complete_step", '{"success":true,"result":{"k":1}}', {**COMPLETION, "result": '{"k": 1}'}),
        ("complete_step", '{"success":true,"result":"r","plan_changes":{}}', COMPLETION),
        ("complete_step", '{"success":true,"result":"r","plan_changes":[]}', COMPLETION),
        ("complete_step", '{"success":true,"result":"r","plan_changes":false}', COMPLETION),
        ("complete_step", '{"success":true,"result":"r","plan_changes":{"steps":null}}', COMPLETION),
        ("complete_step", '{"success":true,"result":"r","plan_changes":{"steps":"none"}}', COMPLETION),
        ("complete_step", '{"success":true,"result":"r","plan_changes":"[]"}', COMPLETION),
    ],
)  # fmt: skip
def test_value_of_another_form_gets_the_type_of_the_schema(name: str, arguments: str, expected: dict[str, Any]) -> None:
    assert arguments_of(name, arguments) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [{"id": "7", "description": "d"}]},
        {"steps": '[{"id": "7", "description": "d"}]'},
        '{"steps": [{"id": "7", "description": "d"}]}',
        [{"id": 7, "description": "d"}],
        '[{"id": "7", "description": "d"}]',
        {"7": "d"},
    ],
)
def test_plan_changes_are_accepted_in_every_form(changes: object) -> None:
    parsed = parse_arguments(CompleteStepInput, json.dumps({**COMPLETION, "plan_changes": changes}))
    assert parsed.plan_changes is not None
    assert [(step.id, step.description) for step in parsed.plan_changes.steps] == [("7", "d")]


@pytest.mark.parametrize(
    "steps",
    [
        [{"id": "1", "description": "one"}, {"id": "2", "description": "two"}],
        '[{"id": "1", "description": "one"}, {"id": "2", "description": "two"}]',
        '"[{\\"id\\": \\"1\\", \\"description\\": \\"one\\"}, {\\"id\\": \\"2\\", \\"description\\": \\"two\\"}]"',
        {"1": "one", "2": "two"},
        {"1": {"description": "one"}, "2": {"description": "two"}},
        {"steps": [{"id": 1, "title": "one"}, {"id": 2, "task": "two"}]},
    ],
)
def test_steps_are_accepted_in_every_form(steps: object) -> None:
    assert plan_of(steps) == [("1", "one"), ("2", "two")]


@pytest.mark.parametrize("steps", [None, "null", "", [], "[]", {}])
def test_nothing_for_steps_means_no_steps(steps: object) -> None:
    assert plan_of(steps) == []


@pytest.mark.parametrize("steps", ["1. one\n2. two", "- one\n- two", ["one", "two"]])
def test_steps_written_as_text_are_split_at_their_marks(steps: object) -> None:
    assert [description for _, description in plan_of(steps)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("shell_exec", '{"id":"a","exec_dir":"~","command":["rm","x"]}', "`command`"),
        ("shell_exec", '{"id":"a","exec_dir":"~","command":{"c":"rm"}}', "`command`"),
        ("shell_exec", '{"id":"a","exec_dir":"~","command":null}', "`command`"),
        ("shell_exec", '{"id":"a","exec_dir":"~","command":"grep "a", b"}', "not valid JSON"),
        ("shell_exec", '{"id":"a","exec_dir":"~","command":"ls"}{"id":"b"}', "not valid JSON"),
        ("shell_exec", "{'id':'a','exec_dir':'~','command':'it's'}", "not valid JSON"),
        ("file_find_in_content", '{"file":"a","regex":"\\d+"}', "escape"),
        ("file_write", '{"file":"a","content":"half of the', "not valid JSON"),
        ("file_write", '{"file":"a","content":"x","mode":"append"}', "no argument `mode`"),
        ("file_read", '{"file":"a","start_line":"two"}', "`start_line`"),
        ("shell_view", "[" * 100_000, "nested too deeply"),
        ("shell_view", "rm -rf", "not valid JSON"),
        ("shell_view", "3", "one JSON object"),
    ],
)  # fmt: skip
def test_ambiguous_arguments_are_refused_with_the_field_and_the_reason(name: str, arguments: str, told: str) -> None:
    with pytest.raises(BadArguments, match=told):
        arguments_of(name, arguments)


def single_quoted(text: str) -> str:
    return "'" + json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_file_content_arrives_byte_for_byte_in_every_wrapping(text: str) -> None:
    plain = json.dumps({"file": "a", "content": text}, ensure_ascii=False)
    forms = [
        plain,
        json.dumps(plain),
        json.dumps({"arguments": plain}),
        plain[:-1],
        plain[:-1] + ",}",
        f"```json\n{plain}\n```",
        f"{{'file': 'a', content: {single_quoted(text)}}}",
    ]
    for form in forms:
        assert arguments_of("file_write", form)["content"] == text, form


@given(text=st.text(min_size=1), data=st.data())
def test_arguments_that_were_cut_off_are_never_complete(text: str, data: st.DataObject) -> None:
    arguments = json.dumps({"file": "a", "content": text})
    assert not is_complete(arguments[: data.draw(st.integers(0, len(arguments) - 1))])


@given(text=st.text(min_size=1), data=st.data())
def test_string_without_end_is_never_closed_by_guess(text: str, data: st.DataObject) -> None:
    arguments = json.dumps({"file": "a", "content": text})
    start = arguments.index("content") + len('content": "')
    with pytest.raises(BadArguments):
        arguments_of("file_write", arguments[: data.draw(st.integers(start, len(arguments) - 2))])
