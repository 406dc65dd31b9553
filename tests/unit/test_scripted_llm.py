"""The fake of the LLM port keeps the port's promises."""

import asyncio

import pytest

from app.domain.errors import ModelFailure
from app.domain.external.llm import LLM, ModelRequest
from app.domain.models.message import Transcript, UserMessage
from tests.fakes.scripted_llm import ScriptedLLM, calling, saying

REQUEST = ModelRequest(transcript=Transcript([UserMessage(content="x")]))


async def test_it_plays_replies_functions_and_failures_in_their_order() -> None:
    model: LLM = ScriptedLLM([saying("a"), lambda question: calling((question.kind, {})), ModelFailure("no")])
    assert (await model.complete(REQUEST)).content == "a"
    assert (await model.complete(REQUEST)).tool_calls[0].name == "final"
    with pytest.raises(ModelFailure):
        await model.complete(REQUEST)


async def test_what_was_asked_is_a_snapshot() -> None:
    model = ScriptedLLM(lambda _question: saying("a"))
    transcript = Transcript([UserMessage(content="x")])
    await model.complete(ModelRequest(transcript=transcript))
    transcript.append(UserMessage(content="y"))
    assert len(model.asked[0].messages) == 1


async def test_a_call_under_way_can_be_cancelled() -> None:
    model = ScriptedLLM([saying("a")], gate=asyncio.Event())
    task = asyncio.create_task(model.complete(REQUEST))
    await model.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.cancelled == 1
