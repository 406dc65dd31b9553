"""Backup and restore of the SQLite store: a copy of its file, which SQLite takes while the service writes to it."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from zipfile import ZipFile

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.sqlite.database import MIGRATIONS, explain_failure
from app.infrastructure.persistence.sqlite.store import DATABASE_FILE, lock_directory

_MEMBER = DATABASE_FILE
_COPY_BYTES = 2**20


class SqliteBackup:
    """Copies `DATA_DIR/anker.db` into an archive, and back into an empty directory."""

    kind = "sqlite"
    program_schema = len(MIGRATIONS)
    """The newest schema that this program can use."""

    def __init__(self, data_dir: Path, *, scratch: Path) -> None:
        """Use the value of DATA_DIR. A copy of the database, as large as itself, is in `scratch` for a while."""
        self._dir = data_dir
        self._scratch = scratch

    @property
    def place(self) -> str:
        """The store, for the operator."""
        return f"SQLite in {self._dir}"

    def save(self, archive: ZipFile) -> tuple[int, str]:
        """Add the database to `archive`. Return the version of its schema and the id of the installation.

        Raises:
            StoreUnavailable: There is no database, or it is damaged.
            OSError: There is no room.
        """
        source = self._dir / DATABASE_FILE
        if not source.exists():
            raise StoreUnavailable(f"DATA_DIR: {self._dir} contains no {DATABASE_FILE}")
        with (
            _temporary_file(self._scratch, "anker-backup-") as copy,
            _explained("the database of DATA_DIR cannot be copied"),
        ):
            with (
                closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as original,
                closing(sqlite3.connect(copy)) as copied,
            ):
                # All pages in one step: a read transaction, which sees one commit and holds up no writer.
                original.backup(copied)
                copied.execute("PRAGMA journal_mode = DELETE").fetchone()  # one file, without a write-ahead log
                _check(copied)
                schema, installation = _version(copied), _installation(copied)
            archive.write(copy, _MEMBER)
        return schema, installation

    def load(self, archive: ZipFile, installation: str) -> None:
        """Write the database of `archive` into the directory, which must not contain one.

        Args:
            archive: An archive whose checksums were verified.
            installation: The id to give to it. With its own id, it also keeps the key of its signed addresses.

        Raises:
            StoreUnavailable: The directory is in use, contains a database or cannot be written, or the database is
                damaged or newer than this program.
        """
        lock = lock_directory(self._dir)
        try:
            if found := sorted(each.name for each in self._dir.glob(f"{DATABASE_FILE}*")):
                raise StoreUnavailable(f"DATA_DIR: {self._dir} contains {found[0]}: restore into another directory")
            try:
                self._write(archive, installation)
            except OSError as error:
                raise StoreUnavailable(f"DATA_DIR: {self._dir} cannot be written: {error.strerror}") from error
        finally:
            os.close(lock)

    def _write(self, archive: ZipFile, installation: str) -> None:
        with _temporary_file(self._dir, "restore-") as copy, _explained("the database of the backup"):
            with archive.open(_MEMBER) as member, copy.open("wb") as file:
                shutil.copyfileobj(member, file, _COPY_BYTES)
            with closing(sqlite3.connect(copy)) as connection, connection:
                _check(connection)
                if (version := _version(connection)) > len(MIGRATIONS):
                    raise StoreUnavailable(f"the backup has schema {version}: use a newer program")
                if _has_metadata(connection) and installation != _installation(connection):
                    connection.execute("DELETE FROM metadata WHERE name = 'signing_key'")
                    connection.execute("INSERT OR REPLACE INTO metadata VALUES ('installation', ?)", (installation,))
            with copy.open("rb+") as file:
                os.fsync(file.fileno())
            copy.rename(self._dir / DATABASE_FILE)
        descriptor = os.open(self._dir, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _has_metadata(connection: sqlite3.Connection) -> bool:
    """Return whether the schema has the table: those of the first programs do not."""
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'metadata'").fetchone())


def _installation(connection: sqlite3.Connection) -> str:
    if not _has_metadata(connection):
        return ""
    found = connection.execute("SELECT value FROM metadata WHERE name = 'installation'").fetchone()
    return "" if found is None else str(found[0])


def _check(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("quick_check found damage")


@contextmanager
def _explained(subject: str) -> Generator[None, None, None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{subject}: {explain_failure(error)}") from error


@contextmanager
def _temporary_file(folder: Path, prefix: str) -> Generator[Path, None, None]:
    """Create a file with mode 0600, and remove it at the end if it is still there."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{prefix}", suffix=".db")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
