"""Resolution of paths: home, alias and allowed folders."""

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from sandbox.settings import Settings
from sandbox.web import Failure

T = TypeVar("T")

NO_SUDO = "there is no sudo in this sandbox: leave out `sudo`"
"""Error text of a call with `sudo` where sudo is disabled."""

_KNOWN_ERRORS: dict[int, tuple[int, str]] = {
    errno.ENOENT: (404, "no such file"),
    errno.ENOTDIR: (400, "part of the path is not a folder"),
    errno.EISDIR: (400, "is a folder"),
    errno.EACCES: (400, "permission denied"),
    errno.EPERM: (400, "permission denied"),
    errno.ELOOP: (400, "too many symbolic links"),
    errno.ENAMETOOLONG: (400, "the name is too long"),
    errno.ENOSPC: (409, "the disk is full"),
    errno.EDQUOT: (409, "the disk quota is used up"),
    errno.EROFS: (409, "the file system is read-only"),
    errno.EFBIG: (413, "the file would be too large"),
    errno.EAGAIN: (400, "cannot be read without waiting"),
    errno.ENXIO: (400, "not a regular file but a socket or device"),
}

_HINT = "write an absolute path, or one that begins with ~/"
_UNUSUAL = re.compile(r"""[\\$"'`\x00-\x1f\x7f]|^\s|\s$|^[A-Za-z][\w+.-]*:|(?:^|/)~""")
"""Finds what may make a path mean something else than the file of exactly that name."""
_PROCESS_FOLDER = re.compile(r"/proc/(\d+)(?:/|$)")
_VARIABLE = re.compile(r"\$(?:\{.*\}|\(.*|[A-Z_][A-Z0-9_]*)|`.*`", re.DOTALL)
_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^\s|\s$"), "the path begins or ends with white space"),
    (re.compile(r"[\x00-\x1f\x7f]"), "the path holds a control character"),
    (re.compile(r"""^(["'`]).*\1$"""), "the path has quotes around it"),
    (re.compile(r"\\"), "the path holds a backslash: separate folders with /, and write spaces as they are"),
    (re.compile(r"^/?[A-Za-z][\w+.-]*:/"), "this is a URL or a path of Windows, not a path in the sandbox"),
    (re.compile(r"^~[^/]|/~(?:/|$)"), "~ stands for the home only as the first folder of a path"),
)


@dataclass(frozen=True)
class ResolvedPath:
    """A resolved path.

    Attributes:
        given: The path as the caller wrote it, for error texts: the caller may not know where the sandbox keeps files.
        absolute: The absolute path.
        real: The absolute path with all symlinks resolved.
        allows: Returns whether the settings allow an absolute path without symlinks.
    """

    given: str
    absolute: str
    real: str
    allows: Callable[[str], bool] = lambda _: True

    def check(self, fd: int) -> None:
        """Refuse a file that was opened by this path if a symlink has led elsewhere since the path was resolved.

        Raises:
            Failure: 400 if the file is not allowed.
        """
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return  # a system without /proc has no files of this process to protect
        if not self.allows(real):
            raise not_allowed(self.given)


class PathResolver:
    """Resolves paths according to the settings. Its methods raise `Failure`."""

    def __init__(self, settings: Settings) -> None:
        self._home = str(settings.home)
        self._alias = str(settings.home_alias).rstrip("/") if settings.home_alias else ""
        self._agent = settings.agent
        closed = [str(root) for root in settings.closed]
        if self._agent.foreign:
            closed += [str(settings.state_dir)] if settings.state_dir else []
        self._rules = [(str(root), True) for root in settings.roots] + [(root, False) for root in closed]
        # The innermost folder decides. Of two rules for one folder, the rule that closes it decides.
        self._rules.sort(key=lambda rule: (-len(rule[0]), rule[1]))
        self._open = not settings.roots

    def absolute(self, path: str) -> str:
        """Return the absolute path of `path`: absolute, relative to the home, below `~`, or below the alias.

        `$HOME`, `~<user>` and `file:` URLs are understood. A path that likely means something else than a file of that
        name, such as `$DIR/a` or `"a"`, is refused unless a file of exactly that name exists. Blocking.
        """
        if "\0" in path:
            raise Failure(400, "a path cannot hold a NUL character")
        try:
            os.fsencode(path)
        except UnicodeEncodeError as error:
            raise Failure(400, "the path is not valid text") from error
        absolute = self._join(path)
        return (
            self._join(self._interpret(path)) if _UNUSUAL.search(path) and not os.path.lexists(absolute) else absolute
        )

    def _join(self, path: str) -> str:
        if path == "~" or path.startswith("~/"):
            path = self._home + path[1:]
        elif self._alias and (path == self._alias or path.startswith(f"{self._alias}/")):
            path = self._home + path[len(self._alias) :]
        return os.path.normpath(os.path.join(self._home, path)) if ".." not in path else self._dotted(path)

    def _interpret(self, path: str) -> str:
        if path.startswith("file:/"):
            host, slash, rest = path.removeprefix("file:").removeprefix("//").partition("/")
            if host in ("", "localhost") and slash:
                path = os.fsdecode(unquote_to_bytes(f"/{rest}"))
        user = os.path.basename(self._alias or self._home)
        first, slash, rest = path.partition("/")
        if first in ("$HOME", "${HOME}", f"~{user}"):
            path = f"~{slash}{rest}"
        reason = next((reason for pattern, reason in _REFUSED if pattern.search(path)), "")
        if not reason and any(_VARIABLE.fullmatch(part) for part in path.split("/")):
            reason = "variables are not expanded in paths"
        if reason:
            raise Failure(400, f"{reason}; {_HINT}: {path}")
        return path

    def resolve(self, path: str) -> ResolvedPath:
        """Resolve the path of a file that may not exist yet. Blocking."""
        if not path:
            raise Failure(400, "the path is empty")
        shown = self.absolute(path)
        real = os.path.realpath(shown)
        if not self._allowed(real):
            raise not_allowed(path)
        return ResolvedPath(path, shown, real, self._allowed)

    def _allowed(self, real: str) -> bool:
        # A thread that acts as the agent still belongs to this process, whose files the agent must not reach. Each
        # thread has a folder of its own, which /proc does not list.
        thread = _PROCESS_FOLDER.match(real)
        if thread and self._agent.foreign and os.path.exists(f"/proc/self/task/{thread[1]}"):
            return False
        for folder, is_open in self._rules:
            if real == folder or real.startswith(f"{folder.rstrip('/')}/"):
                return is_open
        return self._open

    async def folder_to_run_in(self, path: str) -> str:
        """Return the absolute folder for a command; empty for the shell's current one.

        Raises:
            Failure: 404 if there is no such folder.
        """
        return await self._agent.run(self._existing_folder, path) if path else ""

    async def run_in_thread(self, path: str, work: Callable[[ResolvedPath], T]) -> T:
        """Run `work` on the resolved path in a thread that acts as the agent's user.

        Errors of the operating system become a `Failure`.
        """
        return await self._agent.run(self.run, path, work)

    def run(self, path: str, work: Callable[[ResolvedPath], T]) -> T:
        """Run `work` on the resolved path on this thread."""
        try:
            return work(self.resolve(path))
        except OSError as error:
            raise os_failure(error, path) from error

    def _existing_folder(self, path: str) -> str:
        folder = self.absolute(path)
        if not os.path.isdir(folder):
            raise Failure(404, f"no such folder: {path}")
        if not os.access(folder, os.X_OK, effective_ids=True):
            raise Failure(400, f"permission denied: {path}")
        return folder

    def _dotted(self, path: str) -> str:
        # `link/..` is the parent of the link's target, so the file system resolves `..`.
        whole = os.path.join(self._home, path)
        return os.path.realpath(whole) if ".." in whole.split("/") else os.path.normpath(whole)


def not_allowed(path: str) -> Failure:
    """Return the `Failure` for a path that the settings close."""
    return Failure(400, f"not allowed: {path} is outside the folders of this sandbox; work in ~")


def os_failure(error: OSError, path: str) -> Failure:
    """Return the `Failure` for an error of the operating system."""
    status, reason = _KNOWN_ERRORS.get(error.errno or 0, (400, (error.strerror or "input/output error").lower()))
    return Failure(status, f"{reason}: {path}")
