"""Models: the list, the choice at creation and with a message, and the usage that sessions show."""

from typing import Any

import httpx
import pytest

from app.domain.models.message import Usage
from app.domain.repositories.event_log import Commit
from tests.support.api_harness import API, NO_USAGE, ApiHarness

UNKNOWN = {"code": 400, "msg": "model: unknown; the models are main, fast", "data": None}


async def details(client: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    return (await client.get(f"{API}/{session_id}")).json()["data"]


async def test_models_lists_the_profiles_without_address_and_key(client: httpx.AsyncClient) -> None:
    models = [
        {"name": "main", "model": "m-1", "default": True, "vision": False, "context_tokens": 32_000},
        {"name": "fast", "model": "m-2", "default": False, "vision": True, "context_tokens": 128_000},
    ]
    assert (await client.get("/api/v1/models")).json() == {"code": 0, "msg": "success", "data": {"models": models}}


@pytest.mark.parametrize("body", [b"", b"{}", b" ", b'{"model": null, "title": null}', b'{"model": "", "title": " "}'])
async def test_session_without_choices_uses_the_default_model(client: httpx.AsyncClient, body: bytes) -> None:
    created = await client.put(API, content=body)
    assert created.status_code == 200
    session = await details(client, created.json()["data"]["session_id"])
    assert (session["model"], session["title"], session["usage"]) == ("main", None, NO_USAGE)


async def test_session_is_created_with_its_model_and_title(client: httpx.AsyncClient) -> None:
    created = await client.put(API, json={"model": "fast", "title": " My\n task "})
    session = await details(client, created.json()["data"]["session_id"])
    assert (session["model"], session["title"]) == ("fast", "My task")
    [row] = (await client.get(API)).json()["data"]["sessions"]
    assert (row["model"], row["title"], row["usage"]) == ("fast", "My task", NO_USAGE)


@pytest.mark.parametrize("model", ["slow", "Main", "main ", "default"])
async def test_unknown_model_returns_400_with_the_known_ones_and_changes_nothing(
    harness: ApiHarness, client: httpx.AsyncClient, model: str
) -> None:
    created = await client.put(API, json={"model": model})
    assert (created.status_code, created.json()) == (400, UNKNOWN)
    assert (await client.get(API)).json()["data"]["sessions"] == []
    session_id = await harness.create_session()
    for body in ({"message": "hello", "model": model}, {"model": model}):
        answer = await client.post(f"{API}/{session_id}/chat", json=body)
        assert (answer.status_code, answer.json()) == (400, UNKNOWN)
    assert (await details(client, session_id))["events"] == []


@pytest.mark.parametrize("body", [{"model": 5}, {"model": ["fast"]}, {"title": 5}, {"title": "x" * 201}, []])
async def test_malformed_choice_returns_400(client: httpx.AsyncClient, body: Any) -> None:
    assert (await client.put(API, json=body)).status_code == 400
    assert (await client.get(API)).json()["data"]["sessions"] == []


async def test_message_changes_the_model_until_another_message_does(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "a", "model": "fast"})
    assert (await details(client, session_id))["model"] == "fast"
    await harness.send_message(session_id, {"message": "b"})
    assert (await details(client, session_id))["model"] == "fast"
    await harness.send_message(session_id, {"message": "c", "model": "main"})
    assert (await details(client, session_id))["model"] == "main"


async def test_repeated_message_and_attach_leave_the_model_as_it_is(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "a"}, **{"Idempotency-Key": "k"})
    await harness.send_message(session_id, {"message": "a", "model": "fast"}, **{"Idempotency-Key": "k"})
    await harness.send_message(session_id, {"model": "fast"})
    assert (await details(client, session_id))["model"] == "main"


async def test_removed_model_is_shown_as_the_default(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    await harness.store.create("0" * 32, owner="", at=1, model="removed")
    assert (await details(client, "0" * 32))["model"] == "main"


async def test_usage_of_a_session_is_shown_with_its_cost_once_known(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    usage = Usage(prompt_tokens=100, cached_tokens=60, completion_tokens=20, reasoning_tokens=5, calls=2)
    await harness.store.commit(session_id, Commit(timestamp=1, usage=usage))
    shown = {
        "model_calls": 2,
        "prompt_tokens": 100,
        "cached_tokens": 60,
        "reasoning_tokens": 5,
        "completion_tokens": 20,
    }
    assert (await details(client, session_id))["usage"] == shown
    await harness.store.commit(session_id, Commit(timestamp=1, usage=Usage(calls=1, cost=0.5)))
    expected = {**shown, "model_calls": 3, "cost": 0.5}
    assert (await details(client, session_id))["usage"] == expected
    assert (await client.get(API)).json()["data"]["sessions"][0]["usage"] == expected
