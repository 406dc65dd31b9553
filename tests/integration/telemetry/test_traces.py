"""Traces and metrics of a request and its run in different processes, received by a real collector."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.fakes.scripted_openai import Call, ScriptedOpenAI, agent_script
from tests.integration.telemetry.deploy_files import used_metrics
from tests.support.cluster import SandboxProcess
from tests.support.collector import Collector, ReceivedSpan
from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer, require_redis
from tests.support.service import ServiceProcess
from tests.support.stores import Mongod, require_mongod

CANARY = "canary-7391-in-a-text"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
CHAT_ROUTE = "POST /api/v1/sessions/{session_id}/chat"
SECRET = "secret-header-5512"
LABELS = {
    *("method", "route", "status", "limit", "type", "profile", "kind", "outcome", "function", "toolkit", "reason"),
    *("dependency", "state", "version", "role", "le"),
}
"""Labels of the metrics. Their values are few, and none names an owner, a session or a text."""


@dataclass(frozen=True)
class TracedRuns:
    """What two runs left behind: one that went well, and one whose worker was killed."""

    collector: Collector
    session_id: str
    metrics: str
    logs: str


def script(calls: list[Call]):
    return agent_script(steps=1, calls=calls, text=f"Done. {CANARY}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TracedRuns]:
    require_mongod()
    require_redis()
    folder = tmp_path_factory.mktemp("traced")
    mongod = Mongod(folder / "mongod")
    await asyncio.to_thread(mongod.start)
    try:
        with Collector() as collector, ScriptedOpenAI() as model:
            async with RedisServer() as redis, SandboxProcess(folder / "sandbox") as sandbox:
                settings = {
                    **{"MONGODB_URL": mongod.url, "REDIS_URL": redis.url, **sandbox.settings},
                    **{"API_KEY": "sk-0123456789", "API_BASE": model.url, "WORKER_PORT": "0", "LOG_LEVEL": "DEBUG"},
                    "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {SECRET}",
                    "OTEL_BSP_SCHEDULE_DELAY": "100",
                }
                yield await _two_runs(folder, settings, collector, model)
    finally:
        mongod.kill()


async def _two_runs(folder: Path, settings: dict[str, str], collector: Collector, model: ScriptedOpenAI) -> TracedRuns:
    processes: list[ServiceProcess] = []
    for name, part in (("api", "api"), ("first", "worker"), ("second", "worker")):
        (folder / name).mkdir()
        processes.append(ServiceProcess(folder / name / "data", part, **settings))
    api, first, second = processes
    try:
        client, line = await asyncio.gather(api.start(), first.launch())
        metrics_of_worker = line.split()[4].removesuffix("/health,") + "/metrics"
        session_id = await client.create_session()
        model.script = script([Call("shell_exec", {"id": "a", "exec_dir": "~", "command": f"echo {CANARY}"})])
        headers = {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-01"}
        stream = await client.open_chat(session_id, {"message": f"Say {CANARY}"}, headers)
        assert (await stream.read_all())[-1].event == "done"
        async with httpx.AsyncClient() as http:
            pages = [(await http.get(url)).text for url in (f"{api.url}/metrics", metrics_of_worker)]
        await _killed_run(client, first, second, model)
        await client.close()
    finally:
        await asyncio.gather(*(process.stop() for process in processes))
    logs = "".join(process.log.read_text() for process in processes)
    return TracedRuns(collector, session_id, "\n".join(pages), logs)


async def _killed_run(client, first: ServiceProcess, second: ServiceProcess, model: ScriptedOpenAI) -> None:
    """Kill the worker during a tool call. The other one continues the run."""
    model.script = script([Call("shell_exec", {"id": "b", "exec_dir": "~", "command": "sleep 5"})])
    session_id = await client.create_session()
    stream = await client.open_chat(session_id, {"message": "Take a while"})
    await stream.wait_for("tool", status="calling")
    await asyncio.sleep(0.5)  # the export interval: what had ended before is not lost with the worker
    await first.kill()
    await second.launch()
    assert (await stream.read_all())[-1].event == "done"


def one(spans: list[ReceivedSpan], name: str, **attributes: str) -> ReceivedSpan:
    found = [span for span in spans if span.name == name and attributes.items() <= span.attributes.items()]
    assert len(found) == 1, (name, found)
    return found[0]


def spans_of(traced: TracedRuns, trace_id: str) -> list[ReceivedSpan]:
    return [span for span in traced.collector.spans if span.trace_id == trace_id]


@pytest.mark.asyncio(loop_scope="module")
async def test_request_run_step_model_call_and_tool_call_are_one_trace(traced: TracedRuns) -> None:
    spans = spans_of(traced, TRACE_ID)
    request, run, step = one(spans, CHAT_ROUTE), one(spans, "invoke_agent anker"), one(spans, "step")
    tool = one(spans, "execute_tool shell_exec")
    assert [span.role for span in (request, run, step, tool)] == ["api", "worker", "worker", "worker"]
    assert request.parent_id == CLIENT_SPAN
    assert (run.parent_id, step.parent_id, tool.parent_id) == (request.span_id, run.span_id, step.span_id)
    calls = [span for span in spans if span.name == "chat gpt-4o"]
    assert [span.parent_id for span in calls] == [run.span_id, step.span_id, step.span_id, run.span_id]
    assert not any(span.is_error for span in spans)


@pytest.mark.asyncio(loop_scope="module")
async def test_spans_follow_the_genai_conventions(traced: TracedRuns) -> None:
    spans = spans_of(traced, TRACE_ID)
    call = [span for span in spans if span.name == "chat gpt-4o"][1].attributes
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.conversation.id": traced.session_id,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ["tool_call"],
        "server.address": "127.0.0.1",
    }.items() <= call.items()
    tool = one(spans, "execute_tool shell_exec").attributes
    assert (tool["gen_ai.operation.name"], tool["gen_ai.tool.name"]) == ("execute_tool", "shell_exec")
    run = one(spans, "invoke_agent anker").attributes
    assert (run["gen_ai.operation.name"], run["anker.run.outcome"]) == ("invoke_agent", "completed")


@pytest.mark.asyncio(loop_scope="module")
async def test_takeover_of_a_killed_worker_is_in_the_trace_of_the_request(traced: TracedRuns) -> None:
    requests = [span for span in traced.collector.named(CHAT_ROUTE) if span.trace_id != TRACE_ID]
    assert len(requests) == 1
    spans = spans_of(traced, requests[0].trace_id)
    run = one(spans, "invoke_agent anker")  # the killed worker could not end its own
    assert run.parent_id == requests[0].span_id
    assert run.attributes["anker.run.crashed"] is True
    assert run.attributes["anker.run.outcome"] == "completed"


@pytest.mark.asyncio(loop_scope="module")
async def test_no_text_and_no_header_is_in_a_span_a_metric_or_a_log(traced: TracedRuns) -> None:
    assert traced.collector.headers[0]["authorization"] == f"Bearer {SECRET}"
    for body in traced.collector.bodies:
        assert CANARY.encode() not in body
        assert SECRET.encode() not in body
    assert CANARY not in traced.metrics
    assert SECRET not in traced.metrics + traced.logs


@pytest.mark.asyncio(loop_scope="module")
async def test_no_metric_has_a_label_for_an_owner_or_a_session(traced: TracedRuns) -> None:
    # Every login may read the metrics: docs/decisions/0033-logins.md.
    labels = set[str]().union(*_exposed(traced.metrics).values())
    assert labels <= LABELS
    assert traced.session_id not in traced.metrics


@pytest.mark.asyncio(loop_scope="module")
async def test_log_lines_of_request_and_run_carry_the_trace_id(traced: TracedRuns) -> None:
    lines = [json.loads(line) for line in traced.logs.splitlines() if line.startswith("{")]
    assert any(line["event"] == "request" and line.get("trace_id") == TRACE_ID for line in lines)


@pytest.mark.asyncio(loop_scope="module")
async def test_alerts_and_dashboard_use_metrics_and_labels_that_exist(traced: TracedRuns) -> None:
    exposed = _exposed(traced.metrics)
    for file, name, labels in used_metrics():
        assert name in exposed, f"{file}: there is no metric {name}"
        unknown = labels - exposed[name] - {"job", "instance"}
        assert not unknown or not exposed[name], f"{file}: {name} has no label {unknown}"


def _exposed(text: str) -> dict[str, set[str]]:
    """Return the label names of each metric. A metric without samples has none."""
    labels: dict[str, set[str]] = {"up": set()}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            labels[name + suffix] = set()
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    return labels


async def test_absent_collector_costs_one_warning_and_delays_neither_run_nor_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {SECRET}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "8",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        }
        service = ServiceProcess(tmp_path / "data", "", **settings)
        client = await service.start()
        session_id = await client.create_session()
        frames = await client.send_and_read(session_id, "What can this machine do?")
        assert frames[-1].event == "done"
        await eventually(lambda: "spans are lost" in service.log.read_text(), seconds=30)
        await client.close()
        started = time.monotonic()
        await service.stop()
        assert time.monotonic() - started < 10
    log = service.log.read_text()
    assert log.count("spans are lost") == 1
    assert "Traceback" not in log
    assert SECRET not in log
