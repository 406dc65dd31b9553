"""Health of the process and of its dependencies, and its metrics."""

import asyncio
from typing import Literal

from pydantic import Field
from starlette.responses import Response

from app.application.process_monitor import reason_of
from app.domain.errors import Unavailable
from app.interfaces.api.dependencies import RequestServices
from app.interfaces.api.openapi import answers, api_router, text
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.envelope import success

router = api_router("health")


class Health(Schema):
    """The process is alive."""

    status: Literal["ok"]


class HealthAnswer(SuccessAnswer):
    """The envelope that contains `Health`."""

    data: Health


class ReadyAnswer(SuccessAnswer):
    """The state of each dependency by its name."""

    data: dict[str, Literal["ok"]] = Field(examples=[{"store": "ok", "sandbox": "ok"}])


@router.get("/health", responses=answers(HealthAnswer))
async def health() -> Response:
    """Return whether the process is alive."""
    return success({"status": "ok"})


@router.get("/ready", responses=answers(ReadyAnswer, 503))
async def ready(services: RequestServices) -> Response:
    """Return the state of each configured dependency. When one is down, return 503 with all states in `msg`."""
    names = tuple(services.checks)
    reasons = await asyncio.gather(*(reason_of(services.checks[name]) for name in names))
    states = {name: reason or "ok" for name, reason in zip(names, reasons, strict=True)}
    if any(reasons):
        raise Unavailable("; ".join(f"{name}: {state}" for name, state in states.items()))
    return success(states)


@router.get("/metrics", responses=text("Prometheus' text format."))
async def metrics(services: RequestServices) -> Response:
    """Return counters and gauges of this process for Prometheus."""
    content, media_type = services.metrics.render(services.gauges)
    return Response(content, media_type=media_type)
