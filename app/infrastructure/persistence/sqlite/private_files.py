"""Permissions of `DATA_DIR`: no other user of the machine can read conversations, whatever the umask."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

OWN_FOLDERS = frozenset({"sandboxes", "lost+found"})
"""Names of folders that a data directory may have. With another one, the directory also serves other purposes."""

_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_directory(directory: Path) -> None:
    """Create `directory` with mode 0700, or give it that mode if it is this user's and is used for nothing else.

    Otherwise log a warning if other users can enter it: only its single files are private then.

    Raises:
        OSError: The directory cannot be created or read.
    """
    directory.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    found = directory.stat()
    if not found.st_mode & _FOR_OTHERS:
        return
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX and _has_only_own_folders(directory):
        directory.chmod(stat.S_IRWXU)
    elif found.st_mode & stat.S_IRWXO:
        log.warning(
            "other users can enter DATA_DIR; give the service a directory of its own with mode 0700",
            extra={"directory": str(directory)},
        )


def open_private_file(path: Path) -> int:
    """Open a file for reading and writing, with mode 0600, and return its descriptor. Create it if it is missing.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
    found = os.fstat(descriptor)
    if found.st_mode & _FOR_OTHERS:
        if found.st_uid == os.geteuid():
            os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
        else:
            log.warning(
                "a file in DATA_DIR belongs to another user, who may let others read it", extra={"file": str(path)}
            )
    return descriptor


def make_private_file(path: Path, *, create: bool = False) -> None:
    """Give a file mode 0600. Create it if `create` is true; otherwise a missing file is left alone.

    Raises:
        OSError: The file cannot be opened.
    """
    if create or path.exists():
        os.close(open_private_file(path))


def _has_only_own_folders(directory: Path) -> bool:
    return all(entry.name in OWN_FOLDERS or not entry.is_dir() for entry in directory.iterdir())
