"""What of the sandbox is there and works."""

from fastapi import APIRouter
from starlette.responses import Response

from sandbox.activity import Activity
from sandbox.envelope import answer
from sandbox.parts import Parts
from sandbox.shell.manager import Shells

STATUS = "/status"


def status_routes(shells: Shells, parts: Parts, activity: Activity) -> APIRouter:
    """`GET /status` and the browser's restart."""
    router = APIRouter()

    @router.get(STATUS)
    async def status() -> Response:
        reasons = {
            "shell": shells.unavailable,
            "browser": parts.browser.reason,
            "desktop": parts.desktop.reason,
        }
        states = {name: {"ready": not reason, "reason": reason} for name, reason in reasons.items()}
        return answer({**states, "idle_seconds": round(activity.idle_seconds, 3)})

    @router.post("/browser/restart")
    async def restart() -> Response:
        await parts.browser.restart()
        return answer(None, "the browser was started anew")

    # Named so that checkers see them used; the decorators have registered them.
    _ = (status, restart)
    return router
