"""Screenshots of a session: what a tool event's `content.screenshot` is the address of."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from app.interfaces.api.document import operation_id, screenshot
from app.interfaces.api.params import Owner, SessionId, Use

JPEG = "image/jpeg"

router = APIRouter(
    prefix="/api/v1/sessions",
    tags=["sandbox"],
    default_response_class=Response,
    generate_unique_id_function=operation_id,
)


# The wire contract calls a screenshot a picture: in the path, its parameter and the operation id.
@router.get("/{session_id}/pictures/{picture_id}", operation_id="get_picture", responses=screenshot(JPEG, 404, 503))
async def get_screenshot(
    services: Use,
    owner: Owner,
    session_id: SessionId,
    screenshot_id: Annotated[str, Path(alias="picture_id", max_length=64)],
) -> Response:
    """A screenshot that goes with a browser event."""
    jpeg = await services.screenshots.fetch(session_id, screenshot_id, owner=owner)
    # A screenshot never changes; its session's owner alone may keep a copy.
    return Response(jpeg, media_type=JPEG, headers={"Cache-Control": "private, max-age=31536000, immutable"})
