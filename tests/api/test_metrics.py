"""The metrics that `/metrics` reports to Prometheus."""

import re

import httpx

from tests.support.api_harness import ApiHarness


async def test_metrics_count_requests_by_route_and_show_gauges(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await client.get(f"/api/v1/sessions/{session_id}")
    await client.get("/api/v1/sessions/nobody")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    route = re.escape('method="GET",route="/api/v1/sessions/{session_id}"')
    assert re.search(rf'anker_http_requests_total{{{route},status="200"}} 1\.0', answer.text)
    assert re.search(rf'anker_http_requests_total{{{route},status="404"}} 1\.0', answer.text)
    assert "anker_streams_open 0.0" in answer.text
    assert "anker_runs_active 0.0" in answer.text
    assert session_id not in answer.text
