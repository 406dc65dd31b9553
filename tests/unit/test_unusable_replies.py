"""Replies that are cut off, rejected or unusable: they are continued, requested again or corrected, and then named."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import MalformedReply
from app.domain.external.llm import TEXT_CALLS_HINT, ModelReply
from app.domain.models.message import Usage
from app.domain.models.model_profile import ModelProfile
from app.domain.prompts import correction
from app.domain.services.agents.live_text import ContinuationListener, LiveText, repeated_characters
from tests.fakes.scripted_llm import Outcome, calls, completes_step, creates_plan, says
from tests.support.agent_runs import ScriptedSession

BEGINNING = "The report is in ~/report.md. It has three parts, and the first one is about the mach"
WRITE: dict[str, Any] = {"file": "a.txt", "content": "x"}


def cut(text: str) -> ModelReply:
    return replace(says(text), finish="length")


def thoughts() -> ModelReply:
    return ModelReply(finish="length", usage=Usage(calls=1, reasoning_tokens=2_000))


def cut_call(name: str = "file_write", arguments: str = '{"file": "a.txt", "content": "half') -> ModelReply:
    return replace(calls((name, arguments)), finish="length")


def answered(*replies: Outcome) -> list[Outcome]:
    return [creates_plan("one"), completes_step(), *replies]


async def last_event(session: ScriptedSession) -> tuple[str, dict[str, Any]]:
    return (await session.events())[-1]


def profile(output_limit: int = 2_000) -> ModelProfile:
    return ModelProfile(model="scripted", identity="scripted", output_limit=output_limit)


async def run(script: Any, *, output_limit: int = 2_000) -> ScriptedSession:
    session = ScriptedSession(script)
    session.model.profile = profile(output_limit)
    return await session.send()


async def test_cut_answer_is_continued_and_joined() -> None:
    session = await run(answered(cut(BEGINNING), cut("ine. The second"), says(" one is short.")))
    assert (await session.outline())[-2] == f"message {BEGINNING}ine. The second one is short."
    assert session.model.requests[-1].messages[-1].content == correction.CONTINUE
    assert (await session.events())[-1][1]["usage"]["model_calls"] == 5


async def test_answer_that_repeats_its_end_is_joined_without_the_repetition() -> None:
    session = await run(answered(cut(BEGINNING), says(f"{BEGINNING[-40:]}ine.")))
    assert (await session.outline())[-2] == f"message {BEGINNING}ine."


async def test_answer_that_begins_anew_is_joined_without_the_repetition() -> None:
    session = await run(answered(cut("It is done"), says("It is done now.")))
    assert (await session.outline())[-2] == "message It is done now."


async def test_answer_that_stays_cut_is_marked_and_names_the_setting() -> None:
    session = await run(answered(cut("a"), cut("b"), cut("c"), cut("d")))
    assert (await session.outline())[-2] == f"message abcd{correction.CUT_ANSWER}"
    assert "MAX_TOKENS" in correction.CUT_ANSWER


async def test_continuation_is_published_as_the_same_message() -> None:
    session = ScriptedSession(answered(cut(BEGINNING), says(f"{BEGINNING[-40:]}ine.")))
    published: dict[str, str] = {}

    def publish(session_id: str, delta: Any) -> None:
        published[delta.message_id] = published.get(delta.message_id, "") + delta.delta

    session.feed.publish_delta = publish  # type: ignore[method-assign]
    await session.send()
    assert list(published.values()) == ["M", f"{BEGINNING}ine."]


async def test_continuation_that_breaks_off_is_published_anew_with_its_beginning() -> None:
    published: list[tuple[str, str]] = []

    class Recorder:
        def publish_delta(self, session_id: str, delta: Any) -> None:
            published.append((delta.message_id, delta.delta))

        def end_delta(self, session_id: str) -> None: ...

    live = LiveText(Recorder(), "s")  # type: ignore[arg-type]
    live.text("one ")
    listener = ContinuationListener(live, "one ")
    listener.text("tw")
    listener.restart()
    listener.text("two")
    listener.finish()
    first, *_, last = (message_id for message_id, _ in published)
    assert first != last
    assert "".join(delta for message_id, delta in published if message_id == last) == "one two"


@given(parts=st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=2))
def test_parts_without_a_long_repetition_are_joined_without_loss(parts: list[str]) -> None:
    text, continuation = parts
    skipped = repeated_characters(text, continuation)
    assert skipped == 0 or (skipped >= 8 and text.endswith(continuation[:skipped]))


@pytest.mark.parametrize("text", ["-" * 200, "| a | b |\n" * 30])
def test_repeated_pattern_at_the_cut_is_not_taken_for_a_repetition(text: str) -> None:
    assert repeated_characters(text, text[:60]) == 0


@pytest.mark.parametrize("reply", [thoughts(), cut_call(), cut("Let me think")], ids=["thoughts", "call", "text"])
async def test_useless_cut_reply_is_requested_again_with_a_larger_limit(reply: ModelReply) -> None:
    script = [creates_plan("one"), reply, reply, calls(("file_write", WRITE)), completes_step(answer="A")]
    session = await run(script, output_limit=7_000)
    assert [request.max_tokens for request in session.model.requests] == [None, None, 4_000, 7_000, 7_000]
    assert (await session.outline())[-1] == "done"
    assert (await session.events())[-1][1]["usage"]["model_calls"] == 5
    await session.check()


async def test_cut_plan_is_requested_again_with_a_larger_limit() -> None:
    script = [cut_call("create_plan", '{"message": "I will'), creates_plan(message="Hello.")]
    session = await run(script, output_limit=4_000)
    assert [request.max_tokens for request in session.model.requests] == [None, 4_000]


async def test_cut_call_is_never_run_and_the_model_is_told_to_write_in_pieces() -> None:
    session = await run([creates_plan("one"), cut_call(), completes_step(answer="A")])
    assert "file_write calling" not in await session.outline()
    assert session.model.requests[-1].messages[-1].content == correction.CUT_OFF
    assert "append" in correction.CUT_OFF


@pytest.mark.parametrize("reply", [thoughts(), cut_call(), cut("Let me think")], ids=["thoughts", "call", "text"])
async def test_error_after_cut_replies_names_max_tokens(reply: ModelReply) -> None:
    event, data = await last_event(await run([creates_plan("one"), *[reply] * 4]))
    assert event == "error"
    assert "cut off at 2000 tokens; set MAX_TOKENS" in data["error"]
    assert "MODEL_NAME" not in data["error"]


REJECTED = MalformedReply("Failed to call a function", generated='<function=file_write{"file"')


@pytest.mark.parametrize(
    "script",
    [
        [REJECTED, creates_plan("one"), completes_step(), says("A")],
        [creates_plan("one"), REJECTED, completes_step(), says("A")],
        [creates_plan("one"), completes_step(), REJECTED, says("A")],
    ],
    ids=["planning", "executing", "answering"],
)
async def test_rejected_reply_is_told_to_the_model_and_requested_again(script: list[Outcome]) -> None:
    session = await run(script)
    assert (await session.outline())[-2:] == ["message A", "done"]
    position = script.index(REJECTED) + 1
    told = session.model.requests[position].messages[-1].content
    assert "Failed to call a function" in told
    assert "<function=file_write" in told
    assert (await session.events())[-1][1]["usage"]["model_calls"] == 4


async def test_error_after_rejected_replies_names_the_reason_of_the_server() -> None:
    event, data = await last_event(await run([creates_plan("one"), *[REJECTED] * 4]))
    assert event == "error"
    assert "Failed to call a function" in data["error"]


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (says("prose"), "text instead of a function call"),
        (says(""), "it was empty"),
        (ModelReply(text_calls=True, usage=Usage(calls=1)), TEXT_CALLS_HINT),
        (calls(("file_read", {})), "its call of file_read was invalid: argument `file` is missing; set MODEL_NAME"),
        (calls(("nonsense", {})), "it called the unknown function 'nonsense'; set MODEL_NAME"),
    ],
)
async def test_error_after_unusable_replies_names_the_last_problem(reply: ModelReply, named: str) -> None:
    session = await run([creates_plan("one"), *[reply] * 4])
    event, data = await last_event(session)
    assert event == "error"
    assert "4 replies in a row" in data["error"]
    assert named in data["error"]


async def test_text_call_that_is_not_understood_is_never_the_answer() -> None:
    broken = ModelReply(content="I will.", text_calls=True, usage=Usage(calls=1))
    event, _ = await last_event(await run([broken] * 4))
    assert event == "error"
