"""The fake `ScriptedLLM` keeps the promises of the LLM port."""

import asyncio

import pytest

from app.domain.errors import ModelFailure
from app.domain.external.llm import LLM, ModelRequest
from app.domain.models.message import Transcript, UserMessage
from tests.fakes.scripted_llm import ScriptedLLM, calls, says

REQUEST = ModelRequest(transcript=Transcript([UserMessage(content="x")]))


async def test_script_of_replies_functions_and_errors_is_played_in_order() -> None:
    model: LLM = ScriptedLLM([says("a"), lambda request: calls((request.kind, {})), ModelFailure("no")])
    assert (await model.complete(REQUEST)).content == "a"
    assert (await model.complete(REQUEST)).tool_calls[0].name == "answering"
    with pytest.raises(ModelFailure):
        await model.complete(REQUEST)


async def test_recorded_request_does_not_change_with_the_transcript() -> None:
    model = ScriptedLLM(lambda _: says("a"))
    transcript = Transcript([UserMessage(content="x")])
    await model.complete(ModelRequest(transcript=transcript))
    transcript.append(UserMessage(content="y"))
    assert len(model.requests[0].messages) == 1


async def test_call_in_progress_can_be_cancelled() -> None:
    model = ScriptedLLM([says("a")], gate=asyncio.Event())
    task = asyncio.create_task(model.complete(REQUEST))
    await model.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.cancelled == 1
