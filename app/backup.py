"""`python -m app backup FILE` and `python -m app restore FILE`: one file with everything that a store holds.

The file is a ZIP archive, whose checksums find damage: `backup.json` describes it, the other members are the store's.
"""

import argparse
import os
import secrets
import tempfile
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

from pydantic import BaseModel, ConfigDict

from app.domain.errors import AnkerError
from app.infrastructure.persistence.sqlite.backup import SqliteBackup
from app.settings import Settings, UnusableSetting, load_settings

if TYPE_CHECKING:
    from app.infrastructure.persistence.mongo.backup import MongoBackup

_MANIFEST = "backup.json"
_FORMAT = 1
_COMPRESSION_LEVEL = 1
"""The fastest one. Most of a backup is JSON, which it shrinks to about a sixth, and pictures, which do not shrink."""


class BackupManifest(BaseModel):
    """The description of a backup."""

    model_config = ConfigDict(frozen=True)

    format: int
    store: str
    schema_version: int
    installation: str
    created_at: datetime


class UnusableBackup(AnkerError):
    """A backup cannot be written or restored. The message is one line that starts with the name of the file."""


def main(arguments: Sequence[str]) -> str | None:
    """Make or restore a backup. Return what failed in one line, or None."""
    parser = argparse.ArgumentParser(prog="anker", description="Copy the store into one file, or restore it from one.")
    commands = parser.add_subparsers(dest="command", required=True)
    backup = commands.add_parser("backup", help="copy the store into a new FILE; the service may run")
    restore = commands.add_parser("restore", help="restore the store from FILE into an empty DATA_DIR or database")
    for each in (backup, restore):
        each.add_argument("file", type=Path, metavar="FILE")
    restore.add_argument(
        "--replace",
        action="store_true",
        help="take the place of the installation, which must have ended, with its sandboxes and workspaces",
    )
    given = parser.parse_args(arguments)
    path: Path = given.file.absolute()
    try:
        settings = load_settings()
        report = save(settings, path) if given.command == "backup" else load(settings, path, replace=given.replace)
    except (AnkerError, UnusableSetting) as error:
        return str(error)
    print(report)
    return None


def save(settings: Settings, path: Path) -> str:
    """Write a backup of the store to the new file `path`, with mode 0600. Return the line to print.

    Raises:
        AnkerError: The store or the file cannot be used. Nothing is left behind.
    """
    if path.exists():
        raise UnusableBackup(f"{path}: exists already")
    store = _store(settings, path.parent)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with open(descriptor, "w+b") as file:
            manifest = _write(store, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        size = path.stat().st_size
    except OSError as error:
        raise UnusableBackup(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return f"Saved {store.place}, installation {manifest.installation}, to {path}: {size:,} bytes"


def load(settings: Settings, path: Path, *, replace: bool) -> str:
    """Restore the store from the backup `path`. Return the line to print.

    Args:
        settings: They say which store; it must be empty.
        path: The backup.
        replace: Whether it takes the place of the installation, and not stands beside it with an id of its own.

    Raises:
        AnkerError: The backup or the store cannot be used. A damaged backup changes nothing.
    """
    store = _store(settings, path.parent)
    manifest = _verify(path)
    _check(manifest, store, path)
    installation = manifest.installation if replace else secrets.token_hex(8)
    with ZipFile(path) as archive:
        store.load(archive, installation)
    identity = "took the place of installation" if replace else "new installation"
    return f"Restored {store.place} from {path} of {manifest.created_at:%Y-%m-%d %H:%M} UTC: {identity} {installation}"


def _store(settings: Settings, scratch: Path) -> "SqliteBackup | MongoBackup":
    if url := settings.mongodb_url.get_secret_value():
        # Imported here: MongoDB's client takes a while to load.
        from app.infrastructure.persistence.mongo.backup import MongoBackup

        return MongoBackup(url, settings.mongodb_database)
    return SqliteBackup(settings.data_dir, scratch=scratch)


def _write(store: "SqliteBackup | MongoBackup", file: IO[bytes]) -> BackupManifest:
    with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=_COMPRESSION_LEVEL) as archive:
        created_at = datetime.now(UTC)
        schema_version, installation = store.save(archive)
        manifest = BackupManifest(
            format=_FORMAT,
            store=store.kind,
            schema_version=schema_version,
            installation=installation,
            created_at=created_at,
        )
        archive.writestr(_MANIFEST, manifest.model_dump_json())
    return manifest


def _verify(path: Path) -> BackupManifest:
    """Compare the checksums of every member. Return the description of the backup."""
    try:
        with ZipFile(path) as archive:
            manifest = BackupManifest.model_validate_json(archive.read(_MANIFEST))
            damaged = archive.testzip()
    except OSError as error:
        raise UnusableBackup(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (BadZipFile, EOFError, KeyError, RuntimeError, ValueError, zlib.error) as error:
        raise UnusableBackup(f"{path}: not a backup, or damaged") from error
    if damaged is not None:
        raise UnusableBackup(f"{path}: damaged: {damaged}")
    return manifest


def _check(manifest: BackupManifest, store: "SqliteBackup | MongoBackup", path: Path) -> None:
    if manifest.store != store.kind:
        remedy = "set MONGODB_URL" if manifest.store == "mongodb" else "leave MONGODB_URL empty"
        raise UnusableBackup(f"{path}: a backup of another kind of store ({manifest.store}): {remedy}")
    if manifest.format > _FORMAT or manifest.schema_version > store.program_schema:
        raise UnusableBackup(
            f"{path}: schema {manifest.schema_version}, this program knows up to {store.program_schema}:"
            " use a newer program"
        )
