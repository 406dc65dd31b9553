"""The file API. Paths are absolute, relative to the home or `~`; see `files/` for what each call does."""

import os

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from sandbox.auth import MIB
from sandbox.envelope import answer
from sandbox.failure import Failure
from sandbox.files import reading, search, writing
from sandbox.files.calls import OneFile, Read, Replace, Search, Write, run
from sandbox.files.paths import Paths, Place
from sandbox.files.root import Root
from sandbox.web import Body, post

UPLOAD_BYTES = 1024 * MIB


class Find(Body):
    """Names below a folder."""

    path: str
    glob: str


class List(Body):
    """A folder."""

    path: str


def file_routes(paths: Paths, root: Root) -> list[Route]:
    """The routes below `/file`."""
    return [*_content_routes(paths, root), *_folder_routes(paths), *_transfer_routes(paths)]


def _content_routes(paths: Paths, root: Root) -> list[Route]:
    async def carry_out(call: str, body: OneFile) -> Response:
        if body.sudo:
            return answer(*await root.call(call, body))
        return answer(*await paths.use(body.file, lambda place: run(call, place, body)))

    return [
        post("/file/read", Read, lambda body: carry_out("read", body)),
        post("/file/write", Write, lambda body: carry_out("write", body)),
        post("/file/replace", Replace, lambda body: carry_out("replace", body)),
        post("/file/search", Search, lambda body: carry_out("search", body)),
    ]


def _folder_routes(paths: Paths) -> list[Route]:
    async def find(body: Find) -> Response:
        def work(place: Place) -> dict[str, object]:
            files, truncated = search.find(place, body.glob)
            return {"path": place.shown, "files": files, "truncated": truncated}

        return answer(await paths.use(body.path, work))

    async def list_folder(body: List) -> Response:
        def work(place: Place) -> dict[str, object]:
            entries, truncated = search.list_folder(place)
            return {"path": place.shown, "entries": entries, "truncated": truncated}

        return answer(await paths.use(body.path, work))

    return [post("/file/find", Find, find), post("/file/list", List, list_folder)]


def _transfer_routes(paths: Paths) -> list[Route]:
    async def upload(request: Request) -> Response:
        async with request.form() as form:
            file, path = form.get("file"), form.get("path")
            if not isinstance(file, UploadFile) or not isinstance(path, str):
                raise Failure(400, "a multipart form with `file`, a file, and `path` is wanted")

            def work(place: Place) -> dict[str, object]:
                return {"file": place.shown, "size": writing.save_stream(place, file.file)}

            return answer(await paths.use(path, work))

    async def download(request: Request) -> Response:
        path = request.query_params.get("path")
        if path is None:
            raise Failure(400, "path: which file?")
        place = await paths.use(path, _checked)
        # The real path: what was checked is what is sent.
        return FileResponse(place.real, filename=place.shown.rpartition("/")[2], media_type="application/octet-stream")

    return [Route("/file/upload", upload, methods=["POST"]), Route("/file/download", download)]


def _checked(place: Place) -> Place:
    fd, _ = reading.open_regular(place)
    os.close(fd)
    return place
