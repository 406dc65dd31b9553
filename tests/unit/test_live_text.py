"""`PlanListener` publishes a plan's message while the plan is being written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from app.domain.models.event import StatusDelta, TextDelta
from app.domain.services.agents import live_text
from app.domain.services.agents.planner import LiveText, PlanListener


class RecordingFeed:
    """Records the published text of each message and the number of ended messages."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.ended = 0
        self.statuses: list[tuple[str, StatusDelta]] = []

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        assert delta.delta
        self.texts[delta.message_id] = self.texts.get(delta.message_id, "") + delta.delta

    def publish_status(self, session_id: str, status: StatusDelta) -> None:
        self.statuses.append((session_id, status))

    def end_delta(self, session_id: str) -> None:
        self.ended += 1


def write_plan(pieces: list[str]) -> tuple[RecordingFeed, int]:
    """Pass the pieces of a plan to a listener. Return the feed and how often steps were reported."""
    feed, reports = RecordingFeed(), 0

    def on_steps() -> None:
        nonlocal reports
        reports += 1

    listener = PlanListener(LiveText(feed, "s"), on_steps)  # type: ignore[arg-type]
    for piece in pieces:
        listener.arguments("create_plan", piece)
    return feed, reports


@given(message=st.text(min_size=1, max_size=60), data=st.data())
def test_message_is_published_whole_wherever_the_arguments_are_split(message: str, data: st.DataObject) -> None:
    arguments = json.dumps({"title": "t", "message": message, "steps": [{"id": "1", "description": "d"}]})
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=8)))
    pieces = [arguments[start:end] for start, end in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
    feed, reports = write_plan(pieces)
    assert "".join(feed.texts.values()) == message
    assert reports == 1


def test_long_arguments_are_not_parsed_again_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def parse(text: str, **options: Any) -> object:
        parsed.append(len(text))
        return from_json(text, **options)

    monkeypatch.setattr(live_text, "from_json", parse)
    pieces = ['{"message": "', *(["word "] * 40_000), '", "steps": []}']
    feed, _ = write_plan(pieces)
    assert len("".join(feed.texts.values())) > 190_000
    assert sum(parsed) < 100 * sum(map(len, pieces))


@pytest.mark.parametrize("steps", ["[]", "[ ]", "null"])
def test_plan_without_steps_reports_no_steps(steps: str) -> None:
    _, reports = write_plan([f'{{"message": "hi", "steps": {steps}}}'])
    assert reports == 0


def test_restart_begins_a_new_message() -> None:
    feed = RecordingFeed()
    listener = PlanListener(LiveText(feed, "s"), lambda: None)  # type: ignore[arg-type]
    listener.arguments("create_plan", '{"message": "one')
    listener.restart()
    listener.arguments("create_plan", '{"message": "two"}')
    assert list(feed.texts.values()) == ["one", "two"]
    assert feed.ended == 1


def test_wait_of_a_planning_call_is_published_as_status() -> None:
    feed = RecordingFeed()
    PlanListener(LiveText(feed, "s"), lambda: None).waiting("limited", 3.5)  # type: ignore[arg-type]
    assert feed.statuses == [("s", StatusDelta("limited", 3.5))]
