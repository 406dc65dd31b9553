"""The file API. Paths are absolute, relative to the home or `~`; see `files/` for what each call does."""

import os
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, Response

from sandbox.auth import MIB
from sandbox.envelope import Failure, answer
from sandbox.files import reading, search, writing
from sandbox.files.paths import Paths, Place

UPLOAD_BYTES = 1024 * MIB


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OneFile(_Body):
    file: str
    sudo: bool | None = None


class Read(_OneFile):
    """Lines `start_line` (0-based, inclusive) to `end_line` (exclusive)."""

    start_line: int | None = Field(default=None, ge=0)
    end_line: int | None = Field(default=None, ge=0)


class Write(_OneFile):
    """A whole file, or more of it."""

    content: str
    append: bool | None = None
    leading_newline: bool | None = None
    trailing_newline: bool | None = None


class Replace(_OneFile):
    """Every `old_str` becomes `new_str`."""

    old_str: str
    new_str: str


class Search(_OneFile):
    """Lines in which the regex occurs."""

    regex: str


class Find(_Body):
    """Names below a folder."""

    path: str
    glob: str


class List(_Body):
    """A folder."""

    path: str


def file_routes(paths: Paths) -> APIRouter:
    """The routes below `/file`."""
    router = APIRouter(prefix="/file")
    _content_routes(router, paths)
    _folder_routes(router, paths)
    _transfer_routes(router, paths)
    return router


def _content_routes(router: APIRouter, paths: Paths) -> None:
    @router.post("/read")
    async def read(body: Read) -> Response:
        start = body.start_line or 0
        if body.end_line is not None and body.end_line < start:
            raise Failure(400, "end_line is before start_line")

        def work(place: Place) -> tuple[str, reading.Text]:
            return place.shown, reading.read(place, start, body.end_line)

        shown, text = await paths.use(body.file, body.sudo, work)
        data = {
            "content": text.content,
            "line_count": text.line_count,
            "file": shown,
            "truncated": text.next_line is not None,
            "encoding": text.encoding,
        }
        return answer(data, _how_to_read_on(text))

    @router.post("/write")
    async def write(body: Write) -> Response:
        content = ("\n" if body.leading_newline else "") + body.content + ("\n" if body.trailing_newline else "")

        def work(place: Place) -> dict[str, object]:
            written = writing.append(place, content) if body.append else writing.write(place, content)
            return {"file": place.shown, "bytes_written": written}

        return answer(await paths.use(body.file, body.sudo, work))

    @router.post("/replace")
    async def replace(body: Replace) -> Response:
        def work(place: Place) -> dict[str, object]:
            return {"file": place.shown, "replaced_count": writing.replace(place, body.old_str, body.new_str)}

        data = await paths.use(body.file, body.sudo, work)
        return answer(data, f"replaced {data['replaced_count']} occurrence(s)")

    _ = (read, write, replace)


def _folder_routes(router: APIRouter, paths: Paths) -> None:
    @router.post("/search")
    async def search_in(body: Search) -> Response:
        def work(place: Place) -> dict[str, object]:
            found = search.search(place, body.regex)
            return {
                "file": place.shown,
                "matches": found.lines,
                "line_numbers": found.numbers,
                "truncated": found.truncated,
            }

        return answer(await paths.use(body.file, body.sudo, work))

    @router.post("/find")
    async def find(body: Find) -> Response:
        def work(place: Place) -> dict[str, object]:
            files, truncated = search.find(place, body.glob)
            return {"path": place.shown, "files": files, "truncated": truncated}

        return answer(await paths.use(body.path, None, work))

    @router.post("/list")
    async def list_folder(body: List) -> Response:
        def work(place: Place) -> dict[str, object]:
            entries, truncated = search.list_folder(place)
            return {"path": place.shown, "entries": entries, "truncated": truncated}

        return answer(await paths.use(body.path, None, work))

    _ = (search_in, find, list_folder)


def _transfer_routes(router: APIRouter, paths: Paths) -> None:
    @router.post("/upload")
    async def upload(file: Annotated[UploadFile, File()], path: Annotated[str, Form()]) -> Response:
        def work(place: Place) -> dict[str, object]:
            return {"file": place.shown, "size": writing.save_stream(place, file.file)}

        return answer(await paths.use(path, None, work))

    @router.get("/download")
    async def download(path: str) -> Response:
        place = await paths.use(path, None, _checked)
        # The real path: what was checked is what is sent.
        return FileResponse(place.real, filename=place.shown.rpartition("/")[2], media_type="application/octet-stream")

    _ = (upload, download)


def _checked(place: Place) -> Place:
    fd, _ = reading.open_regular(place)
    os.close(fd)
    return place


def _how_to_read_on(text: reading.Text) -> str:
    if text.next_line is None:
        return ""
    if text.line_cut:
        return f"this line is longer than can be given at once; the next one is start_line={text.next_line}"
    return f"the file goes on: read on with start_line={text.next_line}"
