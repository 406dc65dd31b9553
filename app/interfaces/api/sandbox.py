"""A session's sandbox: its shells, its files and its screenshots."""

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

from fastapi import Path, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from app.application.context import client_address
from app.domain.models.sandbox import FileText, ShellState
from app.interfaces.api.dependencies import HoldStream, Owner, RequestBody, RequestServices, SessionId, read_body
from app.interfaces.api.openapi import EVENT_STREAM, answers, api_router, binary, body
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.api.services import Services
from app.interfaces.envelope import success
from app.interfaces.sse import EventStream, split_frame
from app.interfaces.wire import state_frame

T = TypeVar("T")

JPEG = "image/jpeg"

_FAILURES = (400, 404, 409, 413, 429, 502, 503)

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


class ShellFrame(Schema):
    """A shell's console, sent at once and after each change."""

    event: Literal["shell"]
    data: ShellView


class FileFrame(Schema):
    """A text file, sent at once and after each change."""

    event: Literal["file"]
    data: FileView


_SHELL_EXAMPLE = """\
: open

event: shell
data: {"output":"ubuntu@sandbox:~ $ ls\\na.txt\\n","session_id":"main","console":[…]}

"""

_FILE_EXAMPLE = """\
: open

event: file
data: {"content":"# Notes\\n","file":"/home/ubuntu/notes.md"}

"""


@router.post(
    "/{session_id}/shell",
    responses=answers(ShellAnswer, *_FAILURES, frame=ShellFrame, example=_SHELL_EXAMPLE),
    openapi_extra=body(ShellBody),
)
async def view_shell(
    request: Request, services: RequestServices, owner: Owner, session_id: SessionId, hold_stream: HoldStream
) -> Response:
    """Return the console of one of the session's shells; after the end of its sandbox, the last one that was shown.

    With `Accept: text/event-stream`, stream it until the client leaves or the session is deleted, also if the shell
    does not exist yet. Of the shells and files that a page in a browser follows, the newest three stay open.
    """
    wanted = await read_body(request, ShellBody)
    if _accepts_stream(request):
        hold_stream(owner)
        states = await services.inspect_sandbox.follow_shell(
            session_id, wanted.session_id, owner=owner, page=_page_of(request, owner)
        )
        return _stream(services, states, lambda state: split_frame(_shell_frame(state)))
    return success(_shell_data(await services.inspect_sandbox.view_shell(session_id, wanted.session_id, owner=owner)))


@router.post(
    "/{session_id}/file",
    responses=answers(FileAnswer, *_FAILURES, frame=FileFrame, example=_FILE_EXAMPLE),
    openapi_extra=body(FileBody),
)
async def view_file(
    request: Request, services: RequestServices, owner: Owner, session_id: SessionId, hold_stream: HoldStream
) -> Response:
    """Return a text file of the session's workspace. The sandbox is started if it is not running.

    With `Accept: text/event-stream`, stream it until the client leaves or the session is deleted, also if the file
    does not exist yet. Of the shells and files that a page in a browser follows, the newest three stay open.
    """
    wanted = await read_body(request, FileBody)
    if _accepts_stream(request):
        hold_stream(owner)
        states = await services.inspect_sandbox.follow_file(
            session_id, wanted.file, owner=owner, page=_page_of(request, owner)
        )
        return _stream(services, states, lambda state: split_frame(_file_frame(state)))
    return success(_file_data(await services.inspect_sandbox.read_file(session_id, wanted.file, owner=owner)))


def _accepts_stream(request: Request) -> bool:
    return EVENT_STREAM in request.headers.get("accept", "")


def _page_of(request: Request, owner: str) -> str | None:
    """Identify the page that sends the request, as far as it can be told apart; None if no browser sends it."""
    if "origin" not in request.headers:
        return None
    named = (request.headers.get(name, "") for name in ("origin", "user-agent", "x-forwarded-for"))
    return "\n".join((owner, client_address.get(), *named))


def _stream(services: Services, states: AsyncGenerator[T, None], encode: Callable[[T], Iterable[bytes]]) -> EventStream:
    return EventStream(states, encode, heartbeat=services.heartbeat, end_streams=services.end_streams)


# All viewers of a state share one frame, which may have more than a megabyte.
@lru_cache(maxsize=4)
def _shell_frame(shell: ShellState) -> bytes:
    return state_frame("shell", _shell_data(shell))


@lru_cache(maxsize=4)
def _file_frame(text: FileText) -> bytes:
    return state_frame("file", _file_data(text))


def _shell_data(shell: ShellState) -> dict[str, object]:
    console = [asdict(record) for record in shell.console]
    return {"output": shell.output, "session_id": shell.shell_id, "console": console}


def _file_data(text: FileText) -> dict[str, object]:
    return {"content": text.content, "file": text.file}


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
    screenshot_id: Annotated[str, Path(alias="picture_id")],
) -> Response:
    """Return the screenshot of a browser event, whose address is the event's `content.screenshot`."""
    jpeg = await services.screenshots.fetch(session_id, screenshot_id, owner=owner)
    # A screenshot never changes. Only browsers of the session's owner may cache it.
    return Response(jpeg, media_type=JPEG, headers={"Cache-Control": "private, max-age=31536000, immutable"})
