"""Whether the service is alive, and whether what it depends on is there."""

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from app.domain.errors import Unavailable
from app.interfaces.api.document import answers, operation_id, text
from app.interfaces.api.params import Use
from app.interfaces.api.schemas.answers import HealthAnswer, ReadyAnswer
from app.interfaces.api.services import Check
from app.interfaces.envelope import success

CHECK_SECONDS = 5.0
"""How long a dependency may take to say how it is."""

router = APIRouter(tags=["health"], default_response_class=Response, generate_unique_id_function=operation_id)


@router.get("/health", responses=answers(HealthAnswer))
async def health() -> Response:
    """The process answers."""
    return success({"status": "ok"})


@router.get("/ready", responses=answers(ReadyAnswer, 503))
async def ready(services: Use) -> Response:
    """The state of each dependency that is configured; 503 when one is down, with all of them in `msg`."""
    names = tuple(services.checks)
    reasons = await asyncio.gather(*(_reason(services.checks[name]) for name in names))
    states = {name: reason or "ok" for name, reason in zip(names, reasons, strict=True)}
    if any(reasons):
        raise Unavailable("; ".join(f"{name}: {state}" for name, state in states.items()))
    return success(states)


@router.get("/metrics", responses=text("Prometheus' text format."))
async def metrics(services: Use) -> Response:
    """Counts and gauges of this process for Prometheus."""
    content, media_type = services.metrics.render(services.gauges)
    return Response(content, media_type=media_type)


async def _reason(check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} s"
