"""A session's sandbox: its shells, its files and its screenshots."""

from dataclasses import asdict
from typing import Annotated

from fastapi import Path, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from app.interfaces.api.dependencies import Owner, RequestBody, RequestServices, SessionId, read_body
from app.interfaces.api.openapi import answers, api_router, binary, body
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.envelope import success

JPEG = "image/jpeg"

_FAILURES = (400, 404, 409, 413, 502, 503)

router = api_router("sandbox", "/api/v1/sessions")


class ShellBody(RequestBody):
    """The shell to return."""

    session_id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200)] = Field(
        description="The shell's id, as in the tools' argument `id`."
    )


class FileBody(RequestBody):
    """The file to return."""

    file: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096)] = Field(
        description="A path, absolute or relative to the workspace.", examples=["notes.md"]
    )


class ConsoleLine(Schema):
    """A command on a console: the prompt, the command and its output."""

    ps1: str
    command: str
    output: str


class ShellView(Schema):
    """A shell's console."""

    output: str
    session_id: str = Field(description="The shell's id.")
    console: list[ConsoleLine]


class ShellAnswer(SuccessAnswer):
    """The envelope that contains `ShellView`."""

    data: ShellView


class FileView(Schema):
    """A text file."""

    content: str
    file: str


class FileAnswer(SuccessAnswer):
    """The envelope that contains `FileView`."""

    data: FileView


@router.post("/{session_id}/shell", responses=answers(ShellAnswer, *_FAILURES), openapi_extra=body(ShellBody))
async def view_shell(request: Request, services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Return the console of one of the session's shells."""
    wanted = await read_body(request, ShellBody)
    shell = await services.inspect_sandbox.view_shell(session_id, wanted.session_id, owner=owner)
    console = [asdict(record) for record in shell.console]
    return success({"output": shell.output, "session_id": shell.shell_id, "console": console})


@router.post("/{session_id}/file", responses=answers(FileAnswer, *_FAILURES), openapi_extra=body(FileBody))
async def view_file(request: Request, services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Return a text file of the session's workspace."""
    wanted = await read_body(request, FileBody)
    text = await services.inspect_sandbox.read_file(session_id, wanted.file, owner=owner)
    return success({"content": text.content, "file": text.file})


# The wire contract calls a screenshot a picture: in the path, its parameter and the operation id.
@router.get(
    "/{session_id}/pictures/{picture_id}",
    operation_id="get_picture",
    responses=binary(JPEG, "The screenshot.", 404, 503),
)
async def get_screenshot(
    services: RequestServices,
    owner: Owner,
    session_id: SessionId,
    screenshot_id: Annotated[str, Path(alias="picture_id", max_length=64)],
) -> Response:
    """Return the screenshot of a browser event, whose address is the event's `content.screenshot`."""
    jpeg = await services.screenshots.fetch(session_id, screenshot_id, owner=owner)
    # A screenshot never changes. Only browsers of the session's owner may cache it.
    return Response(jpeg, media_type=JPEG, headers={"Cache-Control": "private, max-age=31536000, immutable"})
