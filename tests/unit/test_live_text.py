"""Passing on a plan's message while it is written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.models.event import TextDelta
from app.domain.services.agents.live_text import LiveText, PlanListener


class Ear:
    """Collects what a session's followers would hear."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.retracted = 0

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        assert delta.delta
        self.texts[delta.message_id] = self.texts.get(delta.message_id, "") + delta.delta

    def end_delta(self, session_id: str) -> None:
        self.retracted += 1


def hear(pieces: list[str]) -> tuple[Ear, int]:
    ear, steps = Ear(), 0

    def on_steps() -> None:
        nonlocal steps
        steps += 1

    listener = PlanListener(LiveText(ear, "s"), on_steps)  # type: ignore[arg-type]
    for piece in pieces:
        listener.arguments("create_plan", piece)
    return ear, steps


@given(message=st.text(min_size=1, max_size=60), data=st.data())
def test_the_message_comes_out_whole_however_the_arguments_are_cut(message: str, data: st.DataObject) -> None:
    whole = json.dumps({"title": "t", "message": message, "steps": [{"id": "1", "description": "d"}]})
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    ear, steps = hear(pieces)
    assert "".join(ear.texts.values()) == message
    assert steps == 1


@pytest.mark.parametrize("steps", ["[]", "[ ]", "null"])
def test_a_plan_without_steps_announces_no_work(steps: str) -> None:
    _, seen = hear([f'{{"message": "hi", "steps": {steps}}}'])
    assert seen == 0


def test_a_restarted_answer_begins_a_new_message() -> None:
    ear = Ear()
    listener = PlanListener(LiveText(ear, "s"), lambda: None)  # type: ignore[arg-type]
    listener.arguments("create_plan", '{"message": "one')
    listener.restart()
    listener.arguments("create_plan", '{"message": "two"}')
    assert list(ear.texts.values()) == ["one", "two"]
    assert ear.retracted == 1
