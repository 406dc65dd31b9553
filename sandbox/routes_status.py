"""What of the sandbox is there and works."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.activity import Activity
from sandbox.envelope import answer
from sandbox.parts import Parts
from sandbox.shell.manager import Shells

STATUS = "/status"


def status_routes(shells: Shells, parts: Parts, activity: Activity) -> list[Route]:
    """`GET /status` and the browser's restart."""

    async def status(_: Request) -> Response:
        reasons = {
            "shell": shells.unavailable,
            "browser": parts.browser.reason,
            "desktop": parts.desktop.reason,
        }
        states = {name: {"ready": not reason, "reason": reason} for name, reason in reasons.items()}
        return answer({**states, "idle_seconds": round(activity.idle_seconds, 3)})

    async def restart(_: Request) -> Response:
        await parts.browser.restart()
        return answer(None, "the browser was started anew")

    return [Route(STATUS, status), Route("/browser/restart", restart, methods=["POST"])]
