"""Requests made from the OpenAPI document, and sequences of them: every response is one that the document describes."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import settings
from schemathesis.config import SchemathesisConfig

from tests.fuzz.api_server import ApiServer, serve_api
from tests.support.fuzzing import DETERMINISTIC, LONG, examples
from tests.support.sse import SseParser

# All operations are one test.
pytestmark = pytest.mark.timeout(600)

STREAM = "text/event-stream"

TOKEN = "fuzz-0123456789abcdef0123456789abcdef"
LOGIN = {"Authorization": f"Bearer {TOKEN}"}

EXAMPLES = 1_500 if LONG else 15
"""Number of examples of each operation. Its edge cases come in addition, about 60."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with serve_api(tmp_path_factory.mktemp("api"), api_tokens=f"fuzzer:{TOKEN}") as server:
        yield server


class FrameCheck:
    """A check that the frames of a stream have the schema that the document names for them, with decoded `data`."""

    def __init__(self, document: dict[str, Any]) -> None:
        components = {"components": document["components"]}
        self._validators = {
            (method.upper(), path): jsonschema_rs.validator_for({**content["x-itemSchema"], **components})
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if (content := operation["responses"].get("200", {}).get("content", {}).get(STREAM))
        }

    def validate_frames(self, _ctx: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
        if not response.headers.get("content-type", [""])[0].startswith(STREAM):
            return
        self.validate(case.method, case.path, response.content)

    def validate(self, method: str, path: str, stream: bytes) -> list[str]:
        """Validate a whole stream of an operation, and return the types of its events."""
        parser, validator = SseParser(), self._validators[method.upper(), path]
        frames = [frame for frame in parser.feed(stream) if frame.comment is None]
        assert not parser.rest, "the stream ended within a frame"
        for frame in frames:
            validator.validate({"event": frame.event, "data": frame.data, **({"id": frame.id} if frame.id else {})})
        return [frame.event for frame in frames]


@pytest.fixture(scope="module")
def document(server: ApiServer) -> dict[str, Any]:
    return httpx.get(f"{server.url}/openapi.json", headers=LOGIN).json()


@pytest.fixture(scope="module")
def frame_check(document: dict[str, Any]) -> FrameCheck:
    return FrameCheck(document)


@pytest.fixture(scope="module")
def api_schema(document: dict[str, Any], frame_check: FrameCheck, server: ApiServer) -> schemathesis.BaseSchema:
    config = SchemathesisConfig.from_dict(
        {
            "request-timeout": 30,
            "auth": {"openapi": {"bearer": {"bearer": TOKEN}}},
            "cache": {"enabled": False},
            "generation": {"deterministic": DETERMINISTIC, "database": "none"},
            # An id can have the right form without being the id of anything: 400 or 404 is right.
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }
    )
    # The document covers services without a login too; this one has one.
    document = {**document, "security": [{"bearer": []}]}
    document["paths"]["/health"]["get"]["security"] = []
    for operations in document["paths"].values():
        for operation in operations.values():
            # That schema is for the bytes of the whole stream, `FrameCheck` looks at its frames.
            operation["responses"].get("200", {}).get("content", {}).get(STREAM, {}).pop("schema", None)
    schema = schemathesis.openapi.from_dict(document, config=config)
    schema.config.update(base_url=server.url)
    return schema


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@examples(EXAMPLES, EXAMPLES)
def test_requests_get_documented_responses(case: schemathesis.Case, frame_check: FrameCheck) -> None:
    case.call_and_validate(additional_checks=[frame_check.validate_frames])


def test_sequences_of_requests_get_documented_responses(
    api_schema: schemathesis.BaseSchema, server: ApiServer, frame_check: FrameCheck
) -> None:
    class Sequences(api_schema.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: schemathesis.Response, case: schemathesis.Case, **options: Any) -> None:
            super().validate_response(response, case, additional_checks=[frame_check.validate_frames], **options)

    before = server.cutter.requests
    Sequences.run(settings=settings(examples(40, 1_500, steps=20), deadline=None))
    assert server.cutter.requests - before > 200


def test_streams_of_a_run_have_the_schemas_of_the_document(
    server: ApiServer, frame_check: FrameCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, events = "/api/v1/sessions/{session_id}/chat", "/api/v1/sessions/{session_id}/events"
    with httpx.Client(base_url=server.url, timeout=60, headers=LOGIN) as client:
        session_id = client.put("/api/v1/sessions").json()["data"]["session_id"]
        monkeypatch.setattr(server.cutter, "stream_seconds", 30)
        body = {"message": "Write a file and show it.", "stream": True}
        live = client.post(chat.format(session_id=session_id), json=body)
        monkeypatch.undo()
        stored = client.get(events.format(session_id=session_id))
        shell = client.post(
            f"/api/v1/sessions/{session_id}/shell", json={"session_id": "main"}, headers={"Accept": STREAM}
        )
    seen = frame_check.validate("POST", chat, live.content)
    assert {"message_delta", "title", "plan", "step", "tool", "message", "done"} <= {*seen}
    assert len(frame_check.validate("GET", events, stored.content)) > 10
    frame_check.validate("POST", "/api/v1/sessions/{session_id}/shell", shell.content)
