"""The file API. Paths are absolute, relative to the home or `~`; see `files/` for what each call does."""

import os
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import FileResponse, Response

from sandbox.auth import MIB
from sandbox.envelope import answer
from sandbox.files import reading, search, writing
from sandbox.files.calls import Body, OneFile, Read, Replace, Search, Write, run
from sandbox.files.paths import Paths, Place
from sandbox.files.root import Root

UPLOAD_BYTES = 1024 * MIB


class Find(Body):
    """Names below a folder."""

    path: str
    glob: str


class List(Body):
    """A folder."""

    path: str


def file_routes(paths: Paths, root: Root) -> APIRouter:
    """The routes below `/file`."""
    router = APIRouter(prefix="/file")
    _content_routes(router, paths, root)
    _folder_routes(router, paths)
    _transfer_routes(router, paths)
    return router


def _content_routes(router: APIRouter, paths: Paths, root: Root) -> None:
    async def carry_out(call: str, body: OneFile) -> Response:
        if body.sudo:
            return answer(*await root.call(call, body))
        return answer(*await paths.use(body.file, lambda place: run(call, place, body)))

    @router.post("/read")
    async def read(body: Read) -> Response:
        return await carry_out("read", body)

    @router.post("/write")
    async def write(body: Write) -> Response:
        return await carry_out("write", body)

    @router.post("/replace")
    async def replace(body: Replace) -> Response:
        return await carry_out("replace", body)

    @router.post("/search")
    async def search_in(body: Search) -> Response:
        return await carry_out("search", body)

    _ = (read, write, replace, search_in)


def _folder_routes(router: APIRouter, paths: Paths) -> None:
    @router.post("/find")
    async def find(body: Find) -> Response:
        def work(place: Place) -> dict[str, object]:
            files, truncated = search.find(place, body.glob)
            return {"path": place.shown, "files": files, "truncated": truncated}

        return answer(await paths.use(body.path, work))

    @router.post("/list")
    async def list_folder(body: List) -> Response:
        def work(place: Place) -> dict[str, object]:
            entries, truncated = search.list_folder(place)
            return {"path": place.shown, "entries": entries, "truncated": truncated}

        return answer(await paths.use(body.path, work))

    _ = (find, list_folder)


def _transfer_routes(router: APIRouter, paths: Paths) -> None:
    @router.post("/upload")
    async def upload(file: Annotated[UploadFile, File()], path: Annotated[str, Form()]) -> Response:
        def work(place: Place) -> dict[str, object]:
            return {"file": place.shown, "size": writing.save_stream(place, file.file)}

        return answer(await paths.use(path, work))

    @router.get("/download")
    async def download(path: str) -> Response:
        place = await paths.use(path, _checked)
        # The real path: what was checked is what is sent.
        return FileResponse(place.real, filename=place.shown.rpartition("/")[2], media_type="application/octet-stream")

    _ = (upload, download)


def _checked(place: Place) -> Place:
    fd, _ = reading.open_regular(place)
    os.close(fd)
    return place
