"""Chromium's files in the agent's workspace: its profile, and what it downloads, while it runs as another user.

The agent owns the folders around them and may change them at any time, so nothing here follows what it finds: each
step acts as the user whose folder it is, with no more rights than that user has.
"""

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.identity import Identity
from sandbox.parts.devtools import DevTools, Json

_SHARED_PROFILE = Path(".config") / "anker-chromium"
"""Folder of the profile of a browser that runs as the agent's user, relative to the home."""
_OWN_PROFILE = Path(".config") / "anker-browser" / "profile"
"""Folder of the profile of a browser that runs as a user of its own, relative to the home."""
_DOWNLOADS = "Downloads"
_LOCK_FILES = ("SingletonLock", "SingletonCookie", "SingletonSocket")
"""Files in a profile that keep other browsers out."""

log = logging.getLogger("sandbox")


def remove_profile_locks(profile: Path) -> None:
    """Remove locks that a browser left in `profile`, perhaps in another container."""
    for name in _LOCK_FILES:
        (profile / name).unlink(missing_ok=True)


def _open_to_group(folder: Path) -> None:
    """As the agent, create `folder` and let its group, to which the browser belongs, write to it."""
    folder.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o070 != 0o070:
        folder.chmod(mode | 0o070)


class BrowserWorkspace:
    """The files of a browser that runs as `owner` in the home of `agent`. They may be the same user."""

    def __init__(self, home: Path, agent: Identity, owner: Identity) -> None:
        self._home = home
        self._agent = agent
        self._owner = owner
        self._separate = agent.uid != owner.uid
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare_profile(self, spare: Path) -> Path:
        """Return the folder of the profile. `spare`: an empty folder of the owner, if the workspace has no place."""
        if not self._separate:
            return await self._owner.run(self._prepare_shared_profile)
        await self._try(self._agent, _open_to_group, self._home / _DOWNLOADS)
        parent, profile = (self._home / _OWN_PROFILE).parent, self._home / _OWN_PROFILE
        await self._try(self._agent, _open_to_group, parent)
        if not await self._try(self._owner, self._make_profile, profile):
            aside = profile.with_name(f"unused-{time.time_ns()}")
            await self._try(self._agent, lambda _: profile.rename(aside), profile)
            if not await self._try(self._owner, self._make_profile, profile):
                log.warning("the workspace has no place for the browser's profile: it will not be kept")
                return spare
        return profile

    async def watch_downloads(self, devtools: DevTools) -> None:
        """Keep the folder of downloads open to the browser, and give the agent what was downloaded.

        Raises:
            OSError: The browser has ended or does not answer.
        """
        if not self._separate:
            return
        devtools.on_download_folder = self._on_folder
        devtools.on_event = self._on_event
        await devtools.call("Browser.setDownloadBehavior", behavior="default", eventsEnabled=True)

    def _on_folder(self, path: str) -> None:
        if path.startswith(f"{self._home}/"):
            self._start(self._agent, _open_to_group, Path(path))

    def _on_event(self, method: str, params: Json) -> None:
        if method == "Browser.downloadWillBegin":
            self._start(self._agent, _open_to_group, self._home / _DOWNLOADS)
        elif method == "Browser.downloadProgress" and params.get("state") == "completed":
            path = str(params.get("filePath") or "")
            if path.startswith(f"{self._home}/"):
                self._start(None, self._hand_over, Path(path))

    def _prepare_shared_profile(self) -> Path:
        profile = self._home / _SHARED_PROFILE
        profile.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_profile_locks(profile)
        return profile

    def _make_profile(self, profile: Path) -> None:
        """As the owner, create the profile, or check that only the owner can have written it."""
        with contextlib.suppress(FileExistsError):
            profile.mkdir(mode=0o700)
        found = profile.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self._owner.uid or found.st_mode & 0o077:
            raise PermissionError(1, "not the browser's own folder")
        remove_profile_locks(profile)

    def _hand_over(self, path: Path) -> None:
        """Give the agent a downloaded file, and folders that the browser made for it."""
        for each in (path, *path.parents):
            if each == self._home:
                break
            with self._agent.acting():
                # As the agent, and without following links: it gets nothing that it could not reach before.
                fd = os.open(each, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                plain = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
                if plain and found.st_uid == self._owner.uid and found.st_dev == self._home.stat().st_dev:
                    os.chown(f"/proc/self/fd/{fd}", self._agent.uid, self._agent.gid)
            finally:
                os.close(fd)

    def _start(self, user: Identity | None, work: Callable[[Path], object], path: Path) -> None:
        async def run() -> None:
            await self._try(user, work, path)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self, user: Identity | None, work: Callable[[Path], object], path: Path) -> bool:
        """Do `work` with `path` in a thread, as `user` if there is one. Return whether it succeeded."""
        try:
            if user is None:
                await asyncio.to_thread(work, path)
            else:
                await user.run(work, path)
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
            return False
        return True
