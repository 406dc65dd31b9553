"""The folders of local sandboxes on disk. Everything here blocks: call it in a thread."""

import os
import secrets
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.infrastructure.sandbox.client.shell_ids import encode_scope

TRASH_PREFIX = ".trash-"
"""Start of the name of a folder that is being deleted."""

DELETE_ATTEMPTS = 5
"""Maximum number of attempts to delete a folder."""

DELETE_PAUSE_SECONDS = 0.05
"""Pause in seconds between two attempts to delete a folder."""


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """One session's folder."""

    path: Path

    @property
    def workspace(self) -> Path:
        """The home of the session's shells."""
        return self.path / "workspace"

    @property
    def output(self) -> Path:
        """The folder for whole shell outputs; outside the workspace, which they would clutter."""
        return self.path / "output"

    def make(self) -> None:
        """Create the folders, readable by this user only.

        Raises:
            OSError: The disk is full, or the folder belongs to another user.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.workspace.mkdir(exist_ok=True)
        self.output.mkdir(exist_ok=True)


class SessionFolders:
    """The folders of all sessions, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, session_id: str) -> SessionFolder:
        """Return the session's folder, which need not exist."""
        return SessionFolder(self.root / encode_scope(session_id))

    def names(self) -> list[str]:
        """Return the names of the session folders that exist."""
        return [name for name in os.listdir(self.root) if not name.startswith(".")]

    def remove(self, folder: SessionFolder) -> bool:
        """Delete a session's folder and return whether all of it could be deleted.

        The folder is renamed first, so the session has no files from then on, even while they are being deleted.
        """
        trash = self.root / f"{TRASH_PREFIX}{secrets.token_hex(8)}"
        try:
            folder.path.rename(trash)
        except FileNotFoundError:
            return True
        except OSError:
            return remove_tree(folder.path)
        return remove_tree(trash)

    def empty_trash(self) -> None:
        """Delete the folders whose deletion an earlier process did not complete."""
        for trash in list(self.root.glob(f"{TRASH_PREFIX}*")):
            remove_tree(trash)

    def make_root(self) -> None:
        """Create the root, readable by this user only, whatever mode an earlier version gave it.

        Raises:
            OSError: The disk is full, or the folder belongs to another user.
        """
        self.root.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        self.root.chmod(stat.S_IRWXU)

    def is_writable(self) -> bool:
        """Return whether session folders can be created."""
        try:
            self.make_root()
        except OSError:
            return False
        return os.access(self.root, os.W_OK | os.X_OK)


def remove_tree(folder: Path) -> bool:
    """Delete `folder` and return whether it is gone.

    Read-only folders are deleted too; of symlinks, only the links. Several attempts are made, because a process that is
    being killed may still write into the folder.
    """
    for _ in range(DELETE_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return True
        _grant_access(folder)
        time.sleep(DELETE_PAUSE_SECONDS)
    return False


def _grant_access(folder: Path) -> None:
    """Give this user all permissions for `folder` and the folders in it. Do not follow symlinks."""
    folders = [folder]
    for each in folders:  # grows during the loop
        with suppress(OSError):
            if each.is_dir() and not each.is_symlink():
                each.chmod(stat.S_IRWXU)
                folders += each.iterdir()
