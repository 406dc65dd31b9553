"""The spans of WebSockets, over real connections."""

from dataclasses import replace

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.domain.errors import SandboxUnavailable
from app.interfaces.api.services import provide, services_in
from tests.api.vnc_harness import VncHarness, close_reason
from tests.fakes.recording_tracer import RecordingTracer
from tests.support.api_harness import API
from tests.support.eventually import eventually


@pytest.fixture
def tracer(vnc_harness: VncHarness) -> RecordingTracer:
    tracer = RecordingTracer()
    provide(vnc_harness.api.app, replace(services_in(vnc_harness.api.app), tracer=tracer))
    return tracer


async def test_span_of_a_viewer_lasts_from_handshake_to_close(vnc_harness: VncHarness, tracer: RecordingTracer) -> None:
    session_id, screen = await vnc_harness.create_session()
    tracer.spans.clear()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    (span,) = tracer.spans
    assert span.error is None
    await viewer.close()
    await eventually(lambda: span.error == "")
    assert (span.kind, span.name) == ("server", f"GET {API}/{{session_id}}/vnc")
    assert (span.attributes["url.scheme"], span.attributes["http.response.status_code"]) == ("ws", 101)
    assert session_id not in str(span.attributes)


@pytest.mark.parametrize(
    ("refusal", "code", "error"),
    [(SandboxUnavailable("no desktop now"), 4503, "4503"), (RuntimeError("bug"), 1011, "1011")],
)
async def test_span_of_a_viewer_that_the_service_fails_is_an_error(
    vnc_harness: VncHarness, tracer: RecordingTracer, refusal: Exception, code: int, error: str
) -> None:
    session_id, screen = await vnc_harness.create_session()
    tracer.spans.clear()
    screen.refusal = refusal
    assert (await close_reason(await vnc_harness.connect_viewer(session_id)))[0] == code
    await eventually(lambda: tracer.spans[0].error == error)
    assert tracer.spans[0].attributes["anker.websocket.close_code"] == code


async def test_span_of_a_refused_handshake_has_its_status(vnc_harness: VncHarness, tracer: RecordingTracer) -> None:
    with pytest.raises(InvalidStatus):
        await connect(f"ws://127.0.0.1:{vnc_harness.port}/nowhere", proxy=None)
    await eventually(lambda: tracer.spans[0].error == "")
    assert tracer.spans[0].attributes["http.response.status_code"] == 404
