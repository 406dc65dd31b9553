"""Reading what models send: call IDs, invalid arguments, and calls written as text."""

import json

import pytest

from app.domain.models.message import ToolCall
from app.domain.services.agents.model_exchange import parse_text_call, with_distinct_call_ids
from app.domain.services.agents.planner import CreatePlanInput
from app.domain.services.tools.base import CompleteStepInput

PLAN = {"title": "T", "message": "M", "goal": "G", "steps": [{"id": 1, "description": "D"}]}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(PLAN),
        f"```json\n{json.dumps(PLAN)}\n```",
        f"```\n{json.dumps(PLAN)}\n```",
        json.dumps({"name": "create_plan", "arguments": PLAN}),
        json.dumps({"name": "create_plan", "arguments": json.dumps(PLAN)}),
        json.dumps({"create_plan": PLAN}),
    ],
)
def test_plan_written_as_json_text_is_parsed_in_every_usual_wrapping(content: str) -> None:
    parsed = parse_text_call(CreatePlanInput, content, "create_plan")
    assert parsed is not None
    assert (parsed.title, parsed.message, parsed.goal) == ("T", "M", "G")
    assert [(step.id, step.description) for step in parsed.steps] == [("1", "D")]


@pytest.mark.parametrize("content", ["", "hello", "{", "[]", "{}", '{"steps": []}', "null", '{"arguments": 3}'])
def test_text_that_is_not_a_plan_is_not_parsed(content: str) -> None:
    assert parse_text_call(CreatePlanInput, content, "create_plan") is None


def test_plan_with_steps_as_strings_is_accepted() -> None:
    parsed = CreatePlanInput.model_validate({"message": "M", "steps": ["one", "two"]})
    assert [step.description for step in parsed.steps] == ["one", "two"]


def test_step_completion_written_as_json_text_is_parsed() -> None:
    parsed = parse_text_call(CompleteStepInput, '{"success": true, "result": "r"}', "complete_step")
    assert parsed is not None
    assert parsed.success


def test_missing_and_repeated_call_ids_are_replaced_and_unique_ones_are_kept() -> None:
    taken = {"a"}
    calls = [ToolCall(id=call_id, name="n", arguments="{}") for call_id in ("a", "b", "", "", "b")]
    ids = [call.id for call in with_distinct_call_ids(calls, taken)]
    assert ids[1] == "b"
    assert len(set(ids)) == 5
    assert "a" not in ids
    assert taken == {"a", *ids}
