"""The OpenAPI document describes what the service really sends."""

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.responses import HTMLResponse
from starlette.routing import Route

from app.domain.models.event import (
    DoneEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    PlanEvent,
    RunUsage,
    StepEvent,
    TextDelta,
    TitleEvent,
    ToolCalledEvent,
    ToolCallingEvent,
    WaitEvent,
)
from app.domain.models.plan import Step
from app.domain.models.tool import OpenCall, ToolResult
from app.interfaces.api import health, models, sandbox, schemas, sessions
from app.interfaces.api.schemas import EventFrame, LiveFrame
from app.interfaces.api.sessions import SessionsFrame
from app.interfaces.sse import all_frames
from tests.support.api_harness import API, ApiHarness
from tests.support.sse import SseFrame, read_frames

SNAPSHOT = Path(__file__).parent / "openapi.snapshot.json"
GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "events_v1.jsonl"

CALL = OpenCall(id="c1", toolkit="shell", function="shell_exec", args={"id": "main", "command": "ls"})
EVERYTHING: list[Event] = [
    TitleEvent(title="Everything"),
    MessageEvent(role="assistant", content="I begin."),
    PlanEvent.of([Step(id="1", description="Look")]),
    StepEvent(id="1", description="Look", status="running"),
    ToolCallingEvent.of(CALL),
    ToolCalledEvent.of(CALL, ToolResult(success=True, text="", data={"a": [1]}, content={"console": []})),
    ToolCallingEvent.of(CALL),
    ToolCalledEvent.of(CALL, ToolResult(success=False, text="", message="no")),
    StepEvent(id="1", description="Look", status="failed"),
    WaitEvent(),
    ErrorEvent(error="it broke", usage=RunUsage()),
    DoneEvent(usage=RunUsage(model_calls=2, cost=0.5)),
]


def assert_fits(model: type[BaseModel], sent: Any) -> None:
    """Check that `sent` is valid and has no field that the schema lacks."""
    parsed = model.model_validate_json(json.dumps(sent), strict=True)
    assert parsed.model_dump(mode="json", exclude_unset=True) == sent


def as_object(frame: SseFrame) -> dict[str, Any]:
    found = {"event": frame.event, "data": frame.data}
    return found if frame.id is None else {"id": frame.id, **found}


async def test_every_json_answer_fits_its_schema(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    created = (await client.put(API)).json()
    assert_fits(sessions.CreatedAnswer, created)
    session_id = created["data"]["session_id"]
    url = f"{API}/{session_id}"
    assert_fits(sessions.SessionAnswer, (await client.get(url)).json())
    assert_fits(sessions.SessionsAnswer, (await client.get(API)).json())
    await harness.commit_events(session_id, *EVERYTHING)
    assert_fits(sessions.SessionAnswer, (await client.get(url)).json())
    assert_fits(sessions.SessionsAnswer, (await client.get(API, params={"limit": 1})).json())
    computer = await harness.sandboxes.acquire(session_id)
    await computer.shell_exec("main", "~", "ls")
    await computer.file_write("a", "b", append=False, sudo=False)
    assert_fits(sandbox.ShellAnswer, (await client.post(f"{url}/shell", json={"session_id": "main"})).json())
    assert_fits(sandbox.FileAnswer, (await client.post(f"{url}/file", json={"file": "a"})).json())
    assert_fits(schemas.EmptyAnswer, (await client.post(f"{url}/stop")).json())
    assert_fits(schemas.EmptyAnswer, (await client.delete(url)).json())
    assert_fits(schemas.FailureAnswer, (await client.delete(url)).json())
    assert_fits(models.ModelsAnswer, (await client.get("/api/v1/models")).json())
    assert_fits(health.HealthAnswer, (await client.get("/health")).json())
    assert_fits(health.ReadyAnswer, (await client.get("/ready")).json())


async def test_every_stream_frame_fits_its_schema(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    harness.worker.script = lambda message: EVERYTHING
    sent = await harness.send_message(session_id, {"message": "everything"})
    assert [frame.event for frame in sent][-1] == "wait"
    sent = await harness.send_message(session_id)
    assert len(sent) == len(EVERYTHING) + 1
    for frame in sent:
        assert_fits(EventFrame, as_object(frame))
        assert_fits(LiveFrame, as_object(frame))
    async with live_client.stream("POST", API) as answer:
        listed = await anext(read_frames(answer))
    assert_fits(SessionsFrame, as_object(listed))


def test_delta_frame_fits_its_schema() -> None:
    [frame] = all_frames(TextDelta("m1", "Hel\nlo"))
    event, data, *rest = frame.decode().split("\n")
    assert rest == ["", ""]
    assert_fits(LiveFrame, {"event": event.removeprefix("event: "), "data": json.loads(data.removeprefix("data: "))})


def test_stored_events_of_version_1_fit_the_schema() -> None:
    lines = GOLDEN.read_text().splitlines()
    assert lines
    for line in lines:
        item = json.loads(line)
        assert_fits(EventFrame, {"id": item["data"]["event_id"], **item})


async def test_every_schema_reference_resolves(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    used = set(references(document))
    assert used <= names
    assert "#/components/schemas/LiveFrame" in used


async def test_every_operation_documents_its_failures(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) > 20
    for operation in operations:
        assert "422" not in operation["responses"]
        assert operation["responses"]["500"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/FailureAnswer"
        }
        assert operation["description"]


async def test_document_equals_the_reviewed_snapshot(client: httpx.AsyncClient) -> None:
    """To update the snapshot, run `UPDATE_SNAPSHOTS=1 pytest tests/api/test_openapi.py`, and review the difference."""
    document = (await client.get("/openapi.json")).json()
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_documentation_pages_load_the_document(client: httpx.AsyncClient, path: str) -> None:
    assert "/openapi.json" in (await client.get(path)).text


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_documentation_pages_load_only_files_of_the_service_and_cannot_be_framed(
    client: httpx.AsyncClient, path: str
) -> None:
    page = await client.get(path)
    loaded = re.findall(r"""(?:src|href)="([^"]*)\"""", page.text)
    assert len(loaded) >= 2
    for address in loaded:
        file = await client.get(address)
        assert file.status_code == 200
        assert len(file.content) > 1000
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    for script in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
        assert b64encode(sha256(script.encode()).digest()).decode() in policy
    assert page.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fcore.py", "%2e%2e%2fcore.py"])
async def test_other_files_of_the_documentation_return_404(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/docs/assets/{name}")).status_code == 404


async def test_html_page_without_a_policy_gets_one(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    harness.app.router.routes.insert(0, Route("/page", lambda _: HTMLResponse("<p>")))
    page = await client.get("/page")
    assert page.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert page.headers["x-frame-options"] == "DENY"


async def test_streams_are_documented_as_text_with_a_schema_of_a_frame(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    contents = [
        operation["responses"]["200"]["content"]
        for path in document["paths"].values()
        for operation in path.values()
        if "200" in operation["responses"]
    ]
    streams = [content["text/event-stream"] for content in contents if "text/event-stream" in content]
    assert len(streams) >= 3
    for stream in streams:
        assert stream["schema"] == {"type": "string"}
        assert isinstance(stream["example"], str)
        assert stream["x-itemSchema"]["$ref"].startswith("#/components/schemas/")


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)
