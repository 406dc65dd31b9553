"""Validation of the model's arguments, and the specifications that the model reads."""

import json

import pytest

from app.domain.services.tools.arguments import BadArguments
from app.domain.services.tools.base import RunCall, ToolContext, ToolDependencies, clip
from app.domain.services.tools.registry import EXECUTING
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper


@pytest.fixture
def context() -> ToolContext:
    shared = ToolDependencies(
        sandboxes=MemorySandboxProvider(),
        browsers=MemoryBrowsers(),
        screenshots=MemoryScreenshotKeeper(),
        engine=FakeSearch(),
    )
    return ToolContext(session_id="s", shared=shared)


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        ('{"id": "a", "exec_dir": "~', "not valid JSON"),
        ("[1]", "object"),
        ('{"id": "a", "exec_dir": "~"}', "argument `command` is missing"),
        ('{"id": "a", "exec_dir": "~", "command": "ls", "cwd": "/"}', "there is no argument `cwd`"),
        ('{"id": "a", "exec_dir": "~", "command": ["ls"]}', "argument `command`"),
        ('{"id": "", "exec_dir": "~", "command": "ls"}', "argument `id`"),
        ("", "argument `id` is missing"),
    ],
)
def test_invalid_arguments_raise_error_that_names_the_problem(
    context: ToolContext, arguments: str, error_text: str
) -> None:
    with pytest.raises(BadArguments, match=error_text):
        EXECUTING["shell_exec"].bind(arguments, context)


def test_call_arguments_omit_defaults(context: ToolContext) -> None:
    bound = EXECUTING["file_read"].bind('{"file": "a.txt", "start_line": "3"}', context)
    assert isinstance(bound, RunCall)
    assert bound.args == {"file": "a.txt", "start_line": 3}


def test_schemas_have_no_references_titles_or_nulls() -> None:
    for tool in EXECUTING.values():
        text = json.dumps(tool.spec.parameters)
        assert '"$ref"' not in text
        assert '"$defs"' not in text
        assert '"title"' not in text
        assert '"null"' not in text


def test_functions_and_parameters_match_the_contract() -> None:
    offered = {
        name: (sorted(tool.spec.parameters["properties"]), sorted(tool.spec.parameters.get("required", [])))  # type: ignore[call-overload]
        for name, tool in EXECUTING.items()
    }
    text, file = (["text"], ["text"]), ["file"]
    point = (["coordinate_x", "coordinate_y"], ["coordinate_x", "coordinate_y"])
    assert offered == {
        "shell_exec": (["command", "exec_dir", "id"], ["command", "exec_dir", "id"]),
        "shell_view": (["id"], ["id"]),
        "shell_wait": (["id", "seconds"], ["id"]),
        "shell_write_to_process": (["id", "input", "press_enter"], ["id", "input", "press_enter"]),
        "shell_kill_process": (["id"], ["id"]),
        "file_read": (["encoding", "end_char", "end_line", "file", "start_char", "start_line", "sudo"], file),
        "file_write": (
            ["append", "content", "encoding", "file", "leading_newline", "sudo", "trailing_newline"],
            ["content", "file"],
        ),
        "file_str_replace": (["encoding", "file", "new_str", "old_str", "sudo"], ["file", "new_str", "old_str"]),
        "file_find_in_content": (["file", "regex", "sudo"], ["file", "regex"]),
        "file_find_by_name": (["glob", "path"], ["glob", "path"]),
        "image_view": (file, file),
        "browser_view": ([], []),
        "browser_navigate": (["url"], ["url"]),
        "browser_restart": (["url"], ["url"]),
        "browser_click": (["coordinate_x", "coordinate_y", "index"], []),
        "browser_input": (
            ["coordinate_x", "coordinate_y", "index", "press_enter", "text"],
            ["press_enter", "text"],
        ),
        "browser_move_mouse": point,
        "browser_press_key": (["key"], ["key"]),
        "browser_select_option": (["index", "option"], ["index", "option"]),
        "browser_scroll_up": (["to_top"], []),
        "browser_scroll_down": (["to_bottom"], []),
        "browser_console_exec": (["javascript"], ["javascript"]),
        "browser_console_view": (["max_lines"], []),
        "info_search_web": (["date_range", "query"], ["query"]),
        "message_notify_user": text,
        "message_ask_user": text,
        "complete_step": (["answer", "plan_changes", "result", "success"], ["result", "success"]),
    }


def test_clipped_text_keeps_both_ends_and_counts_the_omitted_characters() -> None:
    clipped = clip("a" * 50 + "b" * 50, limit=30)
    assert clipped.startswith("a" * 20)
    assert clipped.endswith("b" * 10)
    assert "70 characters left out" in clipped
    assert clip("short", limit=30) == "short"
