"""CDP under `/cdp`: what Playwright's `connect_over_cdp("http://<host>/cdp")` asks for, the WebSocket excepted."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.bridges import devtools
from sandbox.parts.browser import Browser


def cdp_routes(browser: Browser) -> list[Route]:
    """The routes below `/cdp/json`. Answers are Chromium's own, failures our envelope."""

    async def ask(request: Request) -> Response:
        # As it came: Chromium undoes the escapes itself.
        target = request.scope["raw_path"].decode("latin-1").removeprefix("/cdp")
        if request.url.query:
            target = f"{target}?{request.url.query}"
        host = request.headers.get("host", "")

        async def passed_on(port: int) -> Response:
            status, body, kind = await asyncio.to_thread(devtools.ask, port, request.method, target)
            return Response(devtools.readdressed(body, port, host), status, media_type=kind)

        return await browser.reach(passed_on)

    return [Route(path, ask, methods=["GET", "PUT"]) for path in ("/cdp/json", "/cdp/json/{_:path}")]
