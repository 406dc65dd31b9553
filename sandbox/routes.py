"""The HTTP API: shells, files, status, and CDP's HTTP side.

CDP under `/cdp` serves what Playwright's `connect_over_cdp("http://<host>/cdp")` requests, except the WebSocket. Paths
of files are absolute, relative to the home, or begin with `~`; `files/` documents each call.
"""

import asyncio
import os
from dataclasses import asdict
from urllib.parse import unquote

from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sandbox.activity import Activity
from sandbox.auth import MIB
from sandbox.files import finding, reading, writing
from sandbox.files.calls import FileCall, ImageCall, ReadCall, ReplaceCall, SearchCall, WriteCall, run_call
from sandbox.files.paths import PathResolver, ResolvedPath
from sandbox.files.process import CallRunner
from sandbox.parts import Parts
from sandbox.parts.browser import Browser
from sandbox.parts.devtools import DevTools, DevToolsError
from sandbox.settings import Settings
from sandbox.shell.console import record_data
from sandbox.shell.excerpt import Excerpt
from sandbox.shell.manager import Shells
from sandbox.shell.record import Record
from sandbox.shell.session import Shell
from sandbox.web import Body, Failure, FileResponse, json_route, success_response


def cdp_routes(browser: Browser) -> list[Route]:
    """Return the routes below `/cdp/json`, which respond as Chromium's own do. Failures use our envelope."""

    async def version(request: Request) -> Response:
        async def ask(devtools: DevTools) -> Response:
            found = await devtools.call("Browser.getVersion")
            return JSONResponse(
                {
                    "Browser": found["product"],
                    "Protocol-Version": found["protocolVersion"],
                    "User-Agent": found["userAgent"],
                    "V8-Version": found["jsVersion"],
                    "webSocketDebuggerUrl": _devtools_url(request, "browser", devtools.browser_id),
                }
            )

        return await browser.connect(ask)

    async def targets(request: Request) -> Response:
        found = await browser.connect(lambda devtools: devtools.call("Target.getTargets"))
        return JSONResponse([_describe_target(request, target) for target in _items(found, "targetInfos")])

    async def new(request: Request) -> Response:
        url = unquote(request.url.query) or "about:blank"
        made = await browser.connect(lambda devtools: devtools.call("Target.createTarget", url=url))
        return JSONResponse(_describe_target(request, {"targetId": made["targetId"], "type": "page", "url": url}))

    async def close(request: Request) -> Response:
        target_id = request.path_params["target_id"]

        async def ask(devtools: DevTools) -> Response:
            try:
                await devtools.call("Target.closeTarget", targetId=target_id)
            except DevToolsError:
                raise Failure(404, f"No such target id: {target_id}") from None
            return PlainTextResponse("Target is closing")

        return await browser.connect(ask)

    return [
        *(Route(path, version) for path in ("/cdp/json/version", "/cdp/json/version/")),
        *(Route(path, targets) for path in ("/cdp/json", "/cdp/json/list")),
        Route("/cdp/json/new", new, methods=["PUT"]),
        Route("/cdp/json/close/{target_id}", close),
    ]


def _devtools_url(request: Request, kind: str, target_id: object) -> str:
    return f"ws://{request.headers.get('host', '')}/cdp/devtools/{kind}/{target_id}"


def _items(found: dict[str, object], name: str) -> list[dict[str, object]]:
    items = found.get(name)
    return items if isinstance(items, list) else []  # pyright: ignore[reportUnknownVariableType]


def _describe_target(request: Request, target: dict[str, object]) -> dict[str, object]:
    return {
        "id": target.get("targetId"),
        "type": target.get("type"),
        "title": target.get("title", ""),
        "url": target.get("url"),
        "webSocketDebuggerUrl": _devtools_url(request, "page", target.get("targetId")),
    }


STATUS = "/status"
"""Path of the status route."""


def status_routes(shells: Shells, parts: Parts, activity: Activity) -> list[Route]:
    """Return the routes of the status and of the browser's restart."""

    async def status(_: Request) -> Response:
        reasons = {
            "shell": await shells.find_problem(),
            "browser": parts.browser.unavailable_reason,
            "desktop": parts.desktop.unavailable_reason,
        }
        states = {name: {"ready": not reason, "reason": reason} for name, reason in reasons.items()}
        return success_response({**states, "idle_seconds": round(activity.idle_seconds, 3)})

    async def restart(_: Request) -> Response:
        await parts.browser.restart()
        return success_response(None, "the browser was restarted")

    return [Route(STATUS, status), Route("/browser/restart", restart, methods=["POST"])]


MAX_INPUT = 65_536
"""Maximum number of characters to type at once."""


class ShellBody(Body):
    """A shell id."""

    id: str


class ExecBody(ShellBody):
    """A command. `exec_dir` is absolute, relative to the home, `~`, or empty for the shell's current folder."""

    exec_dir: str = ""
    command: str


class WatchBody(ShellBody):
    """The version of the console that the person has seen, and the maximum time to wait for another, in seconds."""

    version: str = ""
    seconds: float = Field(default=0, ge=0, le=60)


class WaitBody(ShellBody):
    """The maximum time to wait, in seconds."""

    seconds: float | None = Field(default=15, ge=0, le=300)


class WriteBody(ShellBody):
    """Text to type. Control characters are allowed."""

    input: str = Field(max_length=MAX_INPUT)
    press_enter: bool = False


class KillAllBody(Body):
    """A prefix of shell ids; empty selects all shells."""

    prefix: str = ""


def shell_routes(shells: Shells, paths: PathResolver, settings: Settings) -> list[Route]:
    """Return the routes below `/shell`.

    Responses carry `status` ("completed" or "running") and the `returncode` of the newest command, a `note` if the
    shell's state was lost, and in `console` the newest record, or all of them in `view`.
    """

    async def execute(body: ExecBody) -> Response:
        if "\0" in body.command:
            raise Failure(400, "a command cannot hold a NUL character")
        folder = await paths.folder_to_run_in(body.exec_dir)
        shell = await shells.get_or_create(body.id)
        record, note = await shell.run(body.command, folder)
        await shell.wait_until_idle(settings.exec_seconds)
        return await _exec_response(shell, record, note, settings.exec_seconds)

    async def view(body: ShellBody) -> Response:
        shell = shells.get(body.id)
        newest = shell.console.newest
        if newest is not None:
            newest.reported_bytes = newest.output.total
        return success_response(await _whole_console(shell))

    async def wait(body: WaitBody) -> Response:
        shell = shells.get(body.id)
        await shell.wait_until_idle(15 if body.seconds is None else body.seconds)
        return await _new_output_response(shell)

    async def write(body: WriteBody) -> Response:
        shell = shells.get(body.id)
        await shell.write(body.input + ("\r" if body.press_enter else ""))
        await shell.wait_until_quiet()
        return await _new_output_response(shell)

    async def kill(body: ShellBody) -> Response:
        shell = shells.get(body.id)
        await shell.kill()
        newest = shell.console.newest
        data = {**_state(shell, newest), "console": await _console(newest)}
        return success_response(data, "killed the running processes")

    async def kill_all(body: KillAllBody) -> Response:
        return success_response({"killed": await shells.kill_all(body.prefix)})

    return [
        json_route("/shell/exec", ExecBody, execute),
        json_route("/shell/view", ShellBody, view),
        _watch_route(shells),
        json_route("/shell/wait", WaitBody, wait),
        json_route("/shell/write", WriteBody, write),
        json_route("/shell/kill", ShellBody, kill),
        json_route("/shell/kill_all", KillAllBody, kill_all),
    ]


def _watch_route(shells: Shells) -> Route:
    async def watch(body: WatchBody) -> Response:
        deadline = asyncio.get_running_loop().time() + body.seconds
        shell = await shells.get_later(body.id, body.seconds)
        await shell.wait_for_change(body.version, deadline - asyncio.get_running_loop().time())
        version = shell.version  # before the console is read, so that no change is missed
        return success_response({**await _whole_console(shell), "version": version})

    return json_route("/shell/watch", WatchBody, watch)


async def _exec_response(shell: Shell, record: Record, note: str, seconds: float) -> Response:
    """Return the response of `exec`: this command, its output so far, and the file with the whole output."""
    shown = await _output_from_start(record)
    notes = "; ".join(filter(None, (note, record.note)))
    data = {
        **_state(shell, record),
        "note": notes,
        "command": record.command,
        "output": shown.text,
        "truncated": shown.truncated,
        "output_file": record.output.file,
        "console": await _console(record),
    }
    return success_response(data, _message(record, notes, seconds))


async def _whole_console(shell: Shell) -> dict[str, object]:
    text, rows = await shell.console.text(), await shell.console.rows()
    return {**_state(shell, shell.console.newest), "output": text, "console": rows}


async def _console(record: Record | None) -> list[dict[str, str]]:
    return [] if record is None else [await record_data(record)]


def _state(shell: Shell, record: Record | None) -> dict[str, object]:
    running = record is not None and record.running
    return {
        "session_id": shell.name,
        "status": "running" if running else "completed",
        "returncode": record.returncode if record is not None else None,
        "note": record.note if record is not None else "",
    }


async def _output_from_start(record: Record) -> Excerpt:
    """Return the output of a command from its start and mark it as reported, up to an incomplete sequence."""
    record.reported_bytes = 0
    return await record.new_output()


async def _new_output_response(shell: Shell) -> Response:
    record = shell.console.newest
    output = Excerpt("", truncated=False) if record is None else await record.new_output()
    data = {
        **_state(shell, record),
        "output": output.text,
        "truncated": output.truncated,
        "console": await _console(record),
    }
    return success_response(data, "" if record is None else _message(record, record.note, None))


def _message(record: Record, note: str, seconds: float | None) -> str:
    if record.running:
        after = f" after {seconds:g} s" if seconds is not None else ""
        text = f"still running{after}: shell_wait waits on, shell_write_to_process types, shell_kill_process ends it"
    else:
        text = f"ended with exit code {record.returncode}"
    if record.output.cut and record.output.file:
        text = f"{text}; the output file holds only the first part of the output"
    return f"{text}; {note}" if note else text


UPLOAD_BYTES = 1024 * MIB
"""Maximum size of an uploaded file, in bytes."""


class FindBody(Body):
    """A glob below a folder."""

    path: str
    glob: str


class ListBody(Body):
    """A folder."""

    path: str


def file_routes(paths: PathResolver, runner: CallRunner) -> list[Route]:
    """Return the routes below `/file`."""
    return [*_content_routes(paths, runner), *_folder_routes(paths), *_transfer_routes(paths)]


def _content_routes(paths: PathResolver, runner: CallRunner) -> list[Route]:
    one_image = asyncio.Lock()

    async def carry_out(call: str, body: FileCall) -> Response:
        if body.sudo:
            return success_response(*await runner.call(call, body))
        return success_response(*await paths.run_in_thread(body.file, lambda place: run_call(call, place, body)))

    async def image(body: ImageCall) -> Response:
        async with one_image:  # one may need most of a small sandbox's memory
            return success_response(*await runner.call("image", body))

    return [
        json_route("/file/read", ReadCall, lambda body: carry_out("read", body)),
        json_route("/file/write", WriteCall, lambda body: carry_out("write", body)),
        json_route("/file/replace", ReplaceCall, lambda body: carry_out("replace", body)),
        json_route("/file/search", SearchCall, lambda body: carry_out("search", body)),
        json_route("/file/image", ImageCall, image),
    ]


def _folder_routes(paths: PathResolver) -> list[Route]:
    async def find(body: FindBody) -> Response:
        def work(place: ResolvedPath) -> dict[str, object]:
            return {"path": place.absolute, **asdict(finding.find(place, body.glob))}

        return success_response(await paths.run_in_thread(body.path, work))

    async def list_folder(body: ListBody) -> Response:
        def work(place: ResolvedPath) -> dict[str, object]:
            entries, truncated = finding.list_folder(place)
            return {"path": place.absolute, "entries": entries, "truncated": truncated}

        return success_response(await paths.run_in_thread(body.path, work))

    return [json_route("/file/find", FindBody, find), json_route("/file/list", ListBody, list_folder)]


def _transfer_routes(paths: PathResolver) -> list[Route]:
    async def upload(request: Request) -> Response:
        async with request.form() as form:
            file, path = form.get("file"), form.get("path")
            if not isinstance(file, UploadFile) or not isinstance(path, str):
                raise Failure(400, "a multipart form with `file`, a file, and `path` is wanted")

            def work(place: ResolvedPath) -> dict[str, object]:
                return {"file": place.absolute, "size": writing.save_stream(place, file.file)}

            return success_response(await paths.run_in_thread(path, work))

    async def download(request: Request) -> Response:
        path = request.query_params.get("path")
        if path is None:
            raise Failure(400, "path: which file?")
        return await paths.run_in_thread(path, _open_response)

    return [Route("/file/upload", upload, methods=["POST"]), Route("/file/download", download)]


def _open_response(place: ResolvedPath) -> Response:
    """Open a file with the rights of this thread, and return the response that sends it."""
    fd, found = reading.open_regular(place)
    file = os.fdopen(fd, "rb")  # closed with its last reference, also if the response is never sent
    return FileResponse(file, found.st_size, os.path.basename(place.absolute))
