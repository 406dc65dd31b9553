"""Everything that the model reads, compared with stored snapshots. `UPDATE_SNAPSHOTS=1` writes new ones."""

import json
import os
from pathlib import Path

import pytest

from app.domain.models.message import AssistantMessage, ToolCall, ToolMessage
from app.domain.models.plan import Plan, Step
from app.domain.prompts import compaction, executing, planning
from app.domain.services.agents.planner import CREATE_PLAN
from app.domain.services.tools.registry import EXECUTING

FOLDER = Path(__file__).parent / "snapshots"

FIRST = Step(id="1", description="Look at the machine", status="completed", result="Linux, 2 cores")
SECOND = Step(id="2", description="Write the report", status="running")
PLAN = Plan(goal="a report", steps=(FIRST, SECOND, Step(id="3", description="Check it")))
CALL = ToolCall(id="c", name="shell_exec", arguments='{"command":"uname"}')


def render_prompts() -> dict[str, str]:
    tools = [CREATE_PLAN, *(tool.spec for tool in EXECUTING.values())]
    return {
        "planning_system.txt": planning.SYSTEM,
        "executing_system.txt": executing.SYSTEM,
        "planning_answer.txt": planning.ANSWER.format(results=planning.step_results(PLAN)),
        "executing_opening.txt": executing.opening("Report on this machine", PLAN, SECOND),
        "executing_brief.txt": executing.brief(PLAN, SECOND),
        "executing_brief_changed.txt": executing.brief(PLAN, SECOND, changed=True),
        "interruption.txt": planning.interruption_summary(
            "a new message from the user",
            PLAN,
            [AssistantMessage(tool_calls=(CALL,)), ToolMessage(tool_call_id="c", content="Linux\n[exit code 0]")],
        ),
        "compaction_system.txt": compaction.SYSTEM,
        "compaction_summary.txt": compaction.summary(
            "Python 3.11 is installed.", PLAN, executing.brief(PLAN, SECOND)
        ).content,
        "tools.json": json.dumps(
            [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools], indent=1
        ),
    }


@pytest.mark.parametrize("name", sorted(render_prompts()))
def test_prompt_equals_its_snapshot(name: str) -> None:
    path, text = FOLDER / name, render_prompts()[name] + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text)
    assert text == path.read_text(), f"{name} changed; if this is intended, run with UPDATE_SNAPSHOTS=1"


def test_executor_prompt_and_tool_specifications_stay_below_5300_characters() -> None:
    length = len(executing.SYSTEM) + sum(
        len(json.dumps(tool.spec.parameters)) + len(tool.spec.description) for tool in EXECUTING.values()
    )
    assert length < 5_300
