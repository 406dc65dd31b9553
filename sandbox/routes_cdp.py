"""CDP under `/cdp`: what Playwright's `connect_over_cdp("http://<host>/cdp")` asks for, the WebSocket excepted."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from sandbox.bridges import devtools
from sandbox.parts.browser import Browser


def cdp_routes(browser: Browser) -> APIRouter:
    """The routes below `/cdp/json`. Answers are Chromium's own, failures our envelope."""
    router = APIRouter(prefix="/cdp")

    @router.api_route("/json", methods=["GET", "PUT"])
    @router.api_route("/json/{_rest:path}", methods=["GET", "PUT"])
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

    _ = ask
    return router
