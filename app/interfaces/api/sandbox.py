"""Looking into a session's sandbox: its shells and files."""

from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.interfaces.api.document import answers, body, operation_id
from app.interfaces.api.params import Owner, SessionId, Use, read_body
from app.interfaces.api.schemas.answers import FileAnswer, ShellAnswer
from app.interfaces.api.schemas.requests import FileBody, ShellBody
from app.interfaces.envelope import success

router = APIRouter(
    prefix="/api/v1/sessions",
    tags=["sandbox"],
    default_response_class=Response,
    generate_unique_id_function=operation_id,
)

_FAILURES = (400, 404, 409, 413, 502, 503)


@router.post("/{session_id}/shell", responses=answers(ShellAnswer, *_FAILURES), openapi_extra=body(ShellBody))
async def view_shell(request: Request, services: Use, owner: Owner, session_id: SessionId) -> Response:
    """The console of one of the session's shells."""
    wanted = await read_body(request, ShellBody)
    shell = await services.inspect_sandbox.view_shell(session_id, wanted.session_id, owner=owner)
    console = [asdict(record) for record in shell.console]
    return success({"output": shell.output, "session_id": shell.shell_id, "console": console})


@router.post("/{session_id}/file", responses=answers(FileAnswer, *_FAILURES), openapi_extra=body(FileBody))
async def view_file(request: Request, services: Use, owner: Owner, session_id: SessionId) -> Response:
    """A text file of the session's workspace."""
    wanted = await read_body(request, FileBody)
    text = await services.inspect_sandbox.read_file(session_id, wanted.file, owner=owner)
    return success({"content": text.content, "file": text.file})
