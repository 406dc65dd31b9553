"""The folders of local sandboxes on disk, and their removal. Everything here blocks: call it in a thread."""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from app.infrastructure.sandbox.client.shell_ids import encode_scope

TRASH = ".trash-"
ATTEMPTS = 5
PAUSE_SECONDS = 0.05

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


@dataclass(frozen=True, slots=True)
class Place:
    """One session's folder: `workspace` is the shells' home, `output` holds whole shell outputs."""

    folder: Path

    @property
    def workspace(self) -> Path:
        """The shells' home."""
        return self.folder / "workspace"

    @property
    def output(self) -> Path:
        """Whole shell outputs, beside the workspace so that they do not clutter it."""
        return self.folder / "output"

    def make(self) -> None:
        """Make the folders; nobody but this user can look into them.

        Raises:
            OSError: the disk is full or the folder not ours.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.workspace.mkdir(exist_ok=True)
        self.output.mkdir(exist_ok=True)


class Places:
    """The folders of all sessions, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, session_id: str) -> Place:
        """The session's folder, whether it exists or not."""
        return Place(self.root / encode_scope(session_id))

    def remove(self, place: Place) -> bool:
        """Delete a session's folder with all that is in it; False when something could not be deleted.

        It is moved away first: from then on the session has no files, even while they are being deleted.
        """
        trash = self.root / f"{TRASH}{secrets.token_hex(8)}"
        try:
            place.folder.rename(trash)
        except FileNotFoundError:
            return True
        except OSError:
            return remove_tree(place.folder)
        return remove_tree(trash)

    def names(self) -> list[str]:
        """The names of the sessions' folders."""
        return [name for name in self._listed() if not name.startswith(".")]

    def empty_trash(self) -> None:
        """Delete what an earlier, killed service had begun to delete."""
        for name in self._listed():
            if name.startswith(TRASH):
                remove_tree(self.root / name)

    def _listed(self) -> list[str]:
        try:
            return os.listdir(self.root)
        except FileNotFoundError:
            return []


def remove_tree(folder: Path) -> bool:
    """Delete `folder`, read-only folders in it too, and symlinks without what they point to; True when it is gone.

    Tried a few times: a process that is being killed may still write into it.
    """
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, onerror=_open_and_retry)
        if not os.path.lexists(folder):
            return True
        time.sleep(PAUSE_SECONDS)
    return False


def _open_and_retry(function: Callable[..., object], path: str, _: ExcInfo) -> None:
    """What `rmtree` could not do for want of permission is tried again with it; the next attempt does the rest."""
    for each in (os.path.dirname(path), path):
        try:
            if stat.S_ISDIR(os.lstat(each).st_mode):
                os.chmod(each, stat.S_IRWXU)
        except OSError:
            continue
    try:
        if function in (os.unlink, os.rmdir):
            function(path)
    except OSError:
        return
