"""Users: the agent's user, as which commands and file calls run, and the program's own, which the agent cannot affect.

The program runs as a user of its own and keeps the capabilities that `PROGRAM_CAPABILITIES` names. A child process
becomes the agent's user before it executes a command, and that removes all capabilities. Work inside the program that
touches the agent's files runs inside `Identity.acting`.
"""

import asyncio
import ctypes
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypedDict, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

ENV = "/usr/bin/env"
"""Program that changes the folder and the handling of signals, then executes a command."""

CHOWN, KILL, SETGID, SETUID = 0, 5, 6, 7
"""Capabilities (see capabilities(7))."""
PROGRAM_CAPABILITIES = (CHOWN, KILL, SETGID, SETUID)
"""Capabilities of the program: to act as the other users, to end their processes, and to hand over downloaded files."""

_CAPABILITY_VERSION = 0x20080522
"""`_LINUX_CAPABILITY_VERSION_3` (see capget(2))."""
_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 8, 38
"""`prctl` options (see prctl(2))."""
_SYSTEM_CALLS = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}
"""Numbers of setgroups, setresgid and setresuid. The C library's functions change all threads; the kernel's, one."""
_UNCHANGED = -1
_LIBRARY = ctypes.PyDLL(None, use_errno=True)
"""The C library. PyDLL keeps the interpreter lock: the event loop must not wait for another thread at each call."""


class PopenOptions(TypedDict, total=False):
    """Keyword arguments of `subprocess.Popen`."""

    cwd: str
    user: int
    group: int
    extra_groups: list[int]
    umask: int


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of this system as which processes and threads of the program can act.

    Attributes:
        uid: The user's number.
        gid: The number of the user's main group.
        groups: The numbers of all groups of the user.
        name: The user's name.
        home: The user's home folder.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str

    @property
    def foreign(self) -> bool:
        """Whether it is not the user of this program."""
        return self.uid != os.getuid()

    @classmethod
    def of_user(cls, name: str) -> "Identity":
        """Return the identity of the user called `name`; of the program's own user if it is empty.

        Raises:
            LookupError: There is no such user.
        """
        if not name:
            return cls._own()
        found = pwd.getpwnam(name)
        groups = tuple(os.getgrouplist(name, found.pw_gid))
        return cls(found.pw_uid, found.pw_gid, groups, name, found.pw_dir)

    @classmethod
    def _own(cls) -> "Identity":
        uid = os.getuid()
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
        return cls(uid, os.getgid(), tuple(os.getgroups()), name, os.path.expanduser("~"))

    def command(self, arguments: Sequence[str], folder: str) -> list[str]:
        """Return the command line for a process that runs as this user in `folder`. Start it with `popen_options`."""
        if not self.foreign:
            return [*arguments]
        # `Popen` would change the folder before the user, but the folder may be closed to the program. `launch_prefix`
        # may have put `env` there, and one is enough.
        return [ENV, f"--chdir={folder}", *arguments[arguments[0] == ENV :]]

    def popen_options(self, folder: str) -> PopenOptions:
        """Return the keyword arguments of `Popen` for a process that runs as this user in `folder`.

        The process has no capabilities once it executes its command.
        """
        if not self.foreign:
            return {"cwd": folder}
        groups = list(self.groups)
        return {"cwd": "/", "user": self.uid, "group": self.gid, "extra_groups": groups, "umask": 0o022}

    @contextmanager
    def acting(self) -> Generator[None]:
        """Give this thread the rights of the user and no capability while the context is entered.

        Only the effective ids change, so the user can neither signal nor trace the thread. Start no thread and no
        process inside, and do not wait for other code: they would act as the user too.

        Raises:
            OSError: The program may not act as the user.
        """
        if not self.foreign or os.geteuid() == self.uid:
            yield
            return
        own_groups, own_gid, own_uid = os.getgroups(), os.getgid(), os.getuid()
        capabilities = _permitted()
        try:
            _set_thread_ids(self.groups, self.gid, self.uid)
            _set_capabilities(capabilities, 0)
            yield
        finally:
            _set_capabilities(capabilities, capabilities)
            _set_thread_ids(own_groups, own_gid, own_uid)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of blocking `function`, called in a thread that acts as this user."""

        def call() -> T:
            with self.acting():
                return function(*args, **kwargs)

        return await asyncio.to_thread(call)

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder with everything in it, with the rights of this user. Blocking. Ignore errors."""
        with self.acting(), suppress(OSError):
            if stat.S_ISDIR(folder.lstat().st_mode):  # `rmtree` would wait for the other end of a FIFO
                shutil.rmtree(folder, ignore_errors=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _call(function: str, *arguments: object) -> int:
    """Call a function of the C library that returns -1 on failure.

    Raises:
        OSError: The call failed.
    """
    result: int = getattr(_LIBRARY, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _permitted() -> int:
    """Return the permitted capabilities of this thread as a bit mask."""
    header, sets = _Header(_CAPABILITY_VERSION, 0), (_Sets * 2)()
    _call("capget", ctypes.byref(header), sets)
    return sets[0].permitted | sets[1].permitted << 32


def _set_capabilities(permitted: int, effective: int) -> None:
    """Set the capabilities of this thread to these bit masks; none is inheritable."""
    header, low = _Header(_CAPABILITY_VERSION, 0), 0xFFFFFFFF
    sets = (_Sets * 2)(_Sets(effective & low, permitted & low, 0), _Sets(effective >> 32, permitted >> 32, 0))
    _call("capset", ctypes.byref(header), sets)


def _set_thread_ids(groups: Sequence[int], gid: int, uid: int) -> None:
    """Set the groups and the effective ids of this thread only."""
    try:
        setgroups, setresgid, setresuid = _SYSTEM_CALLS[os.uname().machine]
    except KeyError:
        raise OSError(38, f"no separate users on {os.uname().machine}") from None
    _call("syscall", setgroups, len(groups), (ctypes.c_uint32 * len(groups))(*groups))
    _call("syscall", setresgid, _UNCHANGED, gid, _UNCHANGED)
    _call("syscall", setresuid, _UNCHANGED, uid, _UNCHANGED)


def prepare_folder(folder: Path, owner: Identity) -> None:
    """As root, make a folder that only `owner` may change or list, but whose files others may use by name.

    Raises:
        OSError: The folder cannot be made or given to the owner.
    """
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    if folder.stat().st_uid != owner.uid:
        folder.chmod(0o711)
        os.chown(folder, owner.uid, owner.gid)


def become(user: Identity, *, sudo: bool) -> None:
    """Make this process run as `user` for good, with `PROGRAM_CAPABILITIES` only. Call it before any thread starts.

    Args:
        user: The program's user.
        sudo: Whether the processes that it starts may gain privileges, through sudo.

    Raises:
        OSError: The process lacks the rights.
    """
    wanted = sum(1 << number for number in PROGRAM_CAPABILITIES)
    if not sudo:
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    _set_capabilities(wanted, wanted)
