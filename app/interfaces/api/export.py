"""A session as one ZIP archive. A client that does not read pauses it; nothing of it stays in memory."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import IO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.application.services.export import ArchiveEntry
from app.interfaces.api.dependencies import RequestServices, SessionId, TicketQuery, get_caller
from app.interfaces.api.openapi import api_router, binary
from app.interfaces.middleware import HEAD_KEY

ZIP = "application/zip"

CHUNK = 64 * 1024
"""Minimum size of a part of the archive, in bytes, except for the last one."""

THREAD_BYTES = 32 * 1024
"""Size from which data is compressed on a thread, in bytes. Less takes under a millisecond."""

_FIRST, _LAST = 315_532_800, 4_354_819_198
"""The times that the format can represent, 1980 to 2107, in seconds since the epoch."""

router = api_router("sessions", "/api/v1/sessions")


@router.get("/{session_id}/export", responses=binary(ZIP, "The archive.", 401, 404, 503))
async def export_session(
    request: Request, services: RequestServices, session_id: SessionId, ticket: TicketQuery = None
) -> Response:
    """Stream the session as one ZIP archive: events, transcripts, files of the workspace, pictures, its audit records.

    `SHA256SUMS` and `manifest.json` are last: hashes of all entries, and what is missing and why. If something fails
    meanwhile, the connection breaks and the archive cannot be opened. A ticket opens it once.
    """
    caller = await get_caller(request, session_id, ticket)
    headers = {"Content-Disposition": f'attachment; filename="session-{session_id}.zip"', "Cache-Control": "no-store"}
    if HEAD_KEY in request.scope:
        await services.export.check(session_id, owner=caller.owner)
        return Response(media_type=ZIP, headers=headers)
    entries = await services.export.export(session_id, owner=caller.owner)
    return _ArchiveResponse(zip_chunks(entries), headers)


class _ArchiveResponse(StreamingResponse):
    """Streams an archive. If the client leaves, it ends the export at once, not with the next garbage collection."""

    def __init__(self, archive: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(archive, media_type=ZIP, headers=headers)
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._archive):
            await super().__call__(scope, receive, send)


async def zip_chunks(entries: AsyncGenerator[ArchiveEntry, None]) -> AsyncGenerator[bytes, None]:
    """Yield the archive of `entries`. If one of them fails, the archive ends without its directory: it is unusable."""
    sink = _Sink()
    # The file needs neither `seek` nor `tell`: the sizes then follow the data, and are also in the directory.
    archive = ZipFile(cast("IO[bytes]", sink), "w")
    async with aclosing(entries):
        async for entry in entries:
            with archive.open(_info(entry), "w", force_zip64=True) as target:
                async with aclosing(entry.chunks) as chunks:
                    async for chunk in chunks:
                        if len(chunk) > THREAD_BYTES:
                            await asyncio.to_thread(target.write, chunk)
                        else:
                            target.write(chunk)
                        if sink.size > CHUNK:
                            yield sink.take()
    archive.close()
    yield sink.take()


class _Sink:
    """A file that keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return taken


def _info(entry: ArchiveEntry) -> ZipInfo:
    time = datetime.fromtimestamp(min(max(entry.modified, _FIRST), _LAST), UTC)
    info = ZipInfo(entry.name, time.timetuple()[:6])
    info.compress_type = ZIP_DEFLATED if entry.is_text else ZIP_STORED
    info.external_attr = 0o600 << 16  # a plain file for its owner
    return info
