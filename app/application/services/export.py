"""Use case: export a session as the entries of one archive, each produced while it is read."""

import json
import re
import unicodedata
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256

from app.application.services.audit import AuditTrail, read_all
from app.application.services.streams import EventStreams
from app.domain.errors import AnkerError, SandboxFailure, SandboxUnavailable
from app.domain.external.sandbox import Sandbox, SandboxProvider
from app.domain.external.screenshots import ScreenshotRepository
from app.domain.models.message import AssistantMessage, TranscriptEntry
from app.domain.models.run import TranscriptName
from app.domain.models.sandbox import FolderEntry
from app.domain.models.session import Session
from app.domain.repositories.audit import AuditLog
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.sessions import SessionRepository

FORMAT = 1
"""Version of the archive's structure."""

MAX_FILES = 50_000
"""Maximum number of files, folders and other entries of a workspace to look at."""

MAX_DEPTH = 64
"""Maximum number of folders within each other."""

MAX_MISSING = 1000
"""Maximum number of left-out files that the manifest names."""

MAX_PATH = 1000
"""Maximum length of a path in the manifest, in characters."""

TRANSCRIPT_PAGE = 50
"""Number of entries in one read of a transcript. One may have 200 KB."""

NAME_MAX = 255
"""Maximum length of a file's name on Linux, in bytes."""

MAX_NAME_BYTES = 200
"""Maximum length of one name in UTF-8. File systems allow 255; the rest is for what makes it unique."""

MAX_PATH_BYTES = 900
"""Maximum length of a path. A longer one cannot be extracted everywhere."""

FILES, LONG = "files", "files-with-long-paths"
"""Folders of the archive."""

# Controls and line separators, half surrogate pairs, and what Windows does not allow, `\` and `:` above all.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\:*?"<>|]|[. ]\Z')

WORKSPACE = "~"

_SANDBOX_TOOLS = (b'"name":"shell"', b'"name":"file"', b'"name":"browser"')
"""Marks of tool events after which there is a workspace."""

_KINDS = {"directory": f"more than {MAX_DEPTH} folders deep", "link": "a symbolic link"}
"""Reasons to leave out what is no file."""

_TRANSCRIPTS: tuple[TranscriptName, ...] = ("planner", "executor")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry:
    """A file of the archive. Read `chunks` to their end before the next entry."""

    name: str
    chunks: AsyncGenerator[bytes, None]
    is_text: bool
    """Whether it is worth compressing, and not large."""
    modified: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportService:
    """Export the sessions of an owner."""

    sessions: SessionRepository
    event_log: EventLog
    streams: EventStreams
    screenshots: ScreenshotRepository
    sandboxes: SandboxProvider
    audit_log: AuditLog
    audit: AuditTrail
    versions: Mapping[str, str]
    """Versions of what wrote the archive, by name."""
    max_bytes: int
    """Maximum number of bytes of the workspace to export."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def check(self, session_id: str, *, owner: str) -> None:
        """Do nothing if the session can be exported.

        Raises:
            NotFound: The session does not exist.
        """
        await self.sessions.get(session_id, owner=owner)

    async def export(self, session_id: str, *, owner: str) -> AsyncGenerator[ArchiveEntry, None]:
        """Return the entries of the archive. The last two are `SHA256SUMS` and `manifest.json`.

        What the sandbox does not give is named in the manifest. The sandbox is started if the session has used one,
        because only it has the files.

        Raises:
            NotFound: The session does not exist.
            StoreUnavailable: The store cannot be read; also while the entries are read. The archive is then unusable.
        """
        session = await self.sessions.get(session_id, owner=owner)
        await self.audit.record("session.export", owner=owner, session_id=session_id)
        return _Export(self, session).entries()


@dataclass(slots=True)
class _Manifest:
    """Entries of the archive, and the files that it lacks."""

    entries: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    missing: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    missing_count: int = 0

    def leave_out(self, path: str, reason: str) -> None:
        self.missing_count += 1
        if len(self.missing) < MAX_MISSING:
            self.missing.append({"path": path[:MAX_PATH], "reason": reason})

    @property
    def sums(self) -> bytes:
        """The entries as `sha256sum --check` reads them."""
        return "".join(f"{entry['sha256']}  {entry['name']}\n" for entry in self.entries).encode()


class _Export:
    """One export."""

    def __init__(self, service: ExportService, session: Session) -> None:
        self._service = service
        self._session = session
        self._manifest = _Manifest()
        self._at = service.now()
        self._used_sandbox = False
        self._bytes_left = service.max_bytes
        self._files_left = MAX_FILES

    async def entries(self) -> AsyncGenerator[ArchiveEntry, None]:
        yield self._entry("events.jsonl", self._events())
        for transcript in _TRANSCRIPTS:
            yield self._entry(f"transcripts/{transcript}.jsonl", self._transcript(transcript))
        for screenshot_id in await self._service.screenshots.list_ids(self._session.id):
            yield self._entry(f"pictures/{screenshot_id}.jpg", self._screenshot(screenshot_id), is_text=False)
        async with aclosing(self._workspace()) as files:
            async for entry in files:
                yield entry
        yield self._entry("audit.jsonl", self._audit())
        yield self._entry("versions.json", _whole(_json(dict(self._service.versions))))
        sums = self._manifest.sums
        manifest = self._manifest_data(sums)
        yield self._entry("SHA256SUMS", _whole(sums))
        yield self._entry("manifest.json", _whole(manifest))

    def _entry(
        self,
        name: str,
        chunks: AsyncGenerator[bytes, None],
        *,
        is_text: bool = True,
        modified: float | None = None,
        path: str = "",
    ) -> ArchiveEntry:
        time = self._at.timestamp() if modified is None else modified
        return ArchiveEntry(name=name, chunks=self._hashed(name, chunks, path), is_text=is_text, modified=time)

    async def _hashed(self, name: str, chunks: AsyncGenerator[bytes, None], path: str) -> AsyncGenerator[bytes, None]:
        digest, size = sha256(), 0
        async with aclosing(chunks):
            async for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk
        entry: dict[str, object] = {"name": name, "size": size, "sha256": digest.hexdigest()}
        if path.removeprefix(WORKSPACE) != name.removeprefix(FILES):
            entry |= {"path": path[:MAX_PATH]} if path else {}  # its name had to be changed
        self._manifest.entries.append(entry)

    def _manifest_data(self, sums: bytes) -> bytes:
        return _json(
            {
                "format": FORMAT,
                "session_id": self._session.id,
                "owner": self._session.owner,
                "exported_at": self._at.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "last_event": self._session.last_event_number,
                "sha256sums_sha256": sha256(sums).hexdigest(),
                "entries": self._manifest.entries,
                "missing_count": self._manifest.missing_count,
                "missing": self._manifest.missing,
            }
        )

    async def _events(self) -> AsyncGenerator[bytes, None]:
        pages = self._service.streams.replay(self._session.id, after=0, up_to=self._session.last_event_number)
        async with aclosing(pages):
            async for records in pages:
                for record in records:
                    used = record.type == "tool" and any(mark in record.data for mark in _SANDBOX_TOOLS)
                    self._used_sandbox = self._used_sandbox or used
                yield b"".join(
                    b'{"event":"%b","data":%b}\n' % (record.type.encode(), record.data) for record in records
                )

    async def _transcript(self, transcript: TranscriptName) -> AsyncGenerator[bytes, None]:
        position, load = 0, self._service.event_log.load_transcript
        while page := await load(self._session.id, transcript, after=position, limit=TRANSCRIPT_PAGE):
            yield b"".join(map(_message, page))
            position += len(page)

    async def _screenshot(self, screenshot_id: str) -> AsyncGenerator[bytes, None]:
        yield await self._service.screenshots.get(self._session.id, screenshot_id)

    async def _audit(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(read_all(self._service.audit_log, self._session.id)) as records:
            async for record in records:
                yield b'{"hash":"%b","record":%b}\n' % (record.hash.encode(), record.data)

    async def _workspace(self) -> AsyncGenerator[ArchiveEntry, None]:
        sandbox = await self._sandbox()
        folders = [] if sandbox is None else [(WORKSPACE, FILES, 0)]
        while folders and sandbox is not None:
            folder, archived, depth = folders.pop()
            listing = await self._list(sandbox, folder)
            if listing is None:
                return
            for entry, name in listing:
                path, target = f"{folder}/{entry.name}", archive_path(archived, name)
                if self._files_left == 0:
                    self._manifest.leave_out(path, f"this and all that follow: more than {MAX_FILES} entries")
                    return
                self._files_left -= 1
                if entry.kind == "directory" and depth < MAX_DEPTH:
                    folders.append((path, target, depth + 1))
                elif exported := await self._file(sandbox, path, entry, target):
                    yield exported

    async def _sandbox(self) -> Sandbox | None:
        """Return the sandbox, which is started if the events show that the session has a workspace.

        One that has just ended may still be found. The first call notices it, and another one gets its workspace.
        """
        sandboxes = self._service.sandboxes
        try:
            sandbox = await sandboxes.find(self._session.id)
            if self._used_sandbox if sandbox is None else not await _responds(sandbox):
                sandbox = await sandboxes.acquire(self._session.id)
        except SandboxUnavailable as error:
            self._manifest.leave_out(WORKSPACE, str(error))
            return None
        if sandbox is None:
            self._manifest.leave_out(WORKSPACE, "the session has used no sandbox")
        return sandbox

    async def _list(self, sandbox: Sandbox, folder: str) -> Sequence[tuple[FolderEntry, str]] | None:
        """Return the entries of a folder with their names in the archive; None if the sandbox does not respond."""
        try:
            listing = await sandbox.file_list(folder)
        except SandboxFailure as error:
            self._manifest.leave_out(folder, str(error))
            return ()
        except SandboxUnavailable as error:
            self._manifest.leave_out(folder, f"this folder and all that follow: {error}")
            return None
        if listing.truncated:
            self._manifest.leave_out(folder, f"all but the first {len(listing.entries)} entries")
        usable = [entry for entry in listing.entries if is_name(entry.name)]
        if len(usable) < len(listing.entries):
            self._manifest.leave_out(folder, f"{len(listing.entries) - len(usable)} entries with impossible names")
        return list(zip(usable, archive_names([entry.name for entry in usable]), strict=True))

    async def _file(self, sandbox: Sandbox, path: str, entry: FolderEntry, name: str) -> ArchiveEntry | None:
        """Return a file of the workspace, or None if it is left out."""
        if entry.kind != "file":
            self._manifest.leave_out(path, _KINDS.get(entry.kind, "no regular file"))
            return None
        if entry.size > self._bytes_left:
            self._manifest.leave_out(path, f"{entry.size} bytes do not fit into EXPORT_MAX_BYTES")
            return None
        chunks = sandbox.file_download(path)
        try:
            first = await anext(chunks, b"")
        except AnkerError as error:
            self._manifest.leave_out(path, str(error))
            return None
        content = self._content(path, first, chunks)
        return self._entry(name, content, is_text=False, modified=entry.modified, path=path)

    async def _content(
        self, path: str, first: bytes, chunks: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file. If it cannot be read to its end, what is there stays, and the manifest says so."""
        async with aclosing(chunks):
            chunk = first
            try:
                while chunk:
                    if len(chunk) > self._bytes_left:
                        self._manifest.leave_out(path, "the rest does not fit into EXPORT_MAX_BYTES")
                        return
                    self._bytes_left -= len(chunk)
                    yield chunk
                    chunk = await anext(chunks, b"")
            except SandboxUnavailable as error:
                self._manifest.leave_out(path, f"only its beginning was read: {error}")


async def _responds(sandbox: Sandbox) -> bool:
    try:
        await sandbox.file_list(WORKSPACE)
    except SandboxUnavailable:
        return False
    except SandboxFailure:
        pass
    return True


def _message(entry: TranscriptEntry) -> bytes:
    if isinstance(entry, AssistantMessage):
        # Only the model that wrote these fields may see them.
        entry = replace(entry, provider_fields=None)
    return json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n"


async def _whole(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def is_name(name: str) -> bool:
    """Return whether a file can have this name. Only a sandbox that was taken over returns another one."""
    is_short = len(name.encode("utf-8", "replace")) <= NAME_MAX
    return is_short and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def archive_names(names: Sequence[str]) -> list[str]:
    """Return a name in the archive for each name in one folder.

    It contains nothing that leads out of the folder, and no two differ in case or in the form of accents only.
    """
    taken: set[str] = set()
    found: list[str] = []
    for name in names:
        safe = _shorten(_UNSAFE.sub(_escape, name), name)
        unique, number = safe, 1
        while (key := unicodedata.normalize("NFC", unique).casefold()) in taken:
            number += 1
            unique = f"{safe}~{number}"
        taken.add(key)
        found.append(unique)
    return found


def archive_path(folder: str, name: str) -> str:
    """Return the path of `name` in a folder of the archive, or a shorter one below `LONG`."""
    path = f"{folder}/{name}"
    return path if len(path.encode()) <= MAX_PATH_BYTES else f"{LONG}/{_hash(path)}-{name}"


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "replace"))


def _shorten(safe: str, name: str) -> str:
    encoded = safe.encode()
    if len(encoded) <= MAX_NAME_BYTES:
        return safe
    return f"{encoded[: MAX_NAME_BYTES - 20].decode(errors='ignore')}~{_hash(name)}"


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
