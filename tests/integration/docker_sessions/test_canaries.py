"""Canaries in a Docker sandbox, on a page of a real Chromium: text, title, address, console, dialogs, downloads."""

import json

import pytest

from tests.fakes.scripted_openai import Call
from tests.integration.docker_sessions.conftest import KEY, DockerService
from tests.support.canaries import CanaryModel, Planted, check_seen, stored_by_sqlite, use_service
from tests.support.containers import run

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = """<title>KEY</title><button onclick="alert('KEY')">KEY</button><a download="KEY.txt" href="data:,KEY">KEY</a>
<input value="KEY" placeholder="KEY"><select><option>KEY</select><img alt="KEY">
<pre>TEXT</pre><p><b>FIRST</b><i>REST</i>
<script>console.log("KEY", {"KEY": ["KEY"]}); console.error(new Error("KEY")); location.hash = "KEY"</script>"""

PROGRAM = f"""import html
page = {PAGE!r}.replace('TEXT', html.escape(text)).replace('FIRST', key[:16]).replace('REST', key[16:])
open('page.html', 'w').write(page.replace('KEY', key))
"""

CALLS = [
    Call("browser_navigate", {"url": "~/page.html"}),
    Call("browser_view", {}),
    Call("browser_console_view", {}),
    Call("browser_click", {"index": 1}),
    Call("browser_click", {"index": 2}),
    *(
        Call("browser_console_exec", {"javascript": script})
        for script in (
            "document.title",
            "btoa('u:' + document.title)",
            "throw new Error(document.title)",
            "confirm(document.title), prompt('really?', document.title)",
            "location.href = 'file:///home/ubuntu/' + document.title + '.canary'",
            "window.open('about:blank#' + document.body.innerText)",
        )
    ),
]


async def test_canaries_on_a_page_of_chromium_are_not_in_anything_that_goes_out(
    service: DockerService, session: str
) -> None:
    planted = Planted.new()
    planted.own["api_key"] = KEY
    service.model.reset(CanaryModel(planted, CALLS, PROGRAM))
    out = await use_service(service.client.http, planted, session)
    container = await service.container(session)
    planted.own["token"] = dict(line.split("=", 1) for line in container["Config"]["Env"])["SANDBOX_TOKEN"]
    out["model"] = b"\n".join(asked.raw for asked in service.model.asked)
    out["log"] = service.process.log.read_bytes()
    out["container"] = (await run("sh", "-c", f"docker logs {service.container_name(session)} 2>&1")).encode()
    out["store"] = stored_by_sqlite(service.process.data_dir)
    check_seen(out, planted)
    events = [json.loads(line[6:]) for line in out["stream 0"].splitlines() if line.startswith(b"data: {")]
    shown = [event for event in events if event.get("name") == "browser" and event["status"] == "called"]
    assert [event["function"] for event in shown] == [call.name for call in CALLS]
    assert [event for event in shown if "***" not in json.dumps(event["result"])] == []
