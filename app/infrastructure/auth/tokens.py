"""Logins by tokens that the operator hands out, from a setting or from a file with their hashes; and no login at all.

A token is found by its SHA-256 in a table. Neither that nor the comparison within the table tells an attacker anything
by its duration: it depends on the digest, and nobody can choose a token whose digest begins as wanted. A slow password
hash is not needed, because `new_token` has 256 random bits, which cannot be tried out.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from app.domain.errors import Unauthorized
from app.domain.external.authenticator import Credentials
from app.domain.models.principal import ANONYMOUS

log = logging.getLogger(__name__)

MIN_TOKEN_CHARS = 12
"""Minimum length of a token in the setting, in characters. Those of `new_token` are longer."""

RELOAD_SECONDS = 1.0
"""Maximum age of what was read from the file, in seconds: a removed line is refused after that time."""

MAX_FILE_BYTES = 1 << 20
"""Maximum size of the file, in bytes."""

FORM = "must be name:token,name:token, or the path of a file with lines of `./run.sh token NAME`"
"""What the setting looks like. It is not repeated in errors, as it may be a token itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_TOKEN = re.compile(r"[!-+\--~]+")
"""Visible ASCII characters but the comma."""
_DIGEST = re.compile(r"[0-9a-f]{64}")

_Names = Mapping[str, str]
"""Names by the digest of their token."""

_INVALID = "the token is not valid, or not any more"


def new_token(name: str) -> tuple[str, str]:
    """Return a new token, and its line for the file.

    Raises:
        ValueError: `name` cannot be used.
    """
    _check_name(name)
    token = f"anker_{secrets.token_urlsafe(32)}"
    return token, f"{name}:{_digest(token)}"


class NoLogin:
    """Implements `Authenticator` for a service without a login: everyone who can reach it is the same principal."""

    async def authenticate(self, credentials: Credentials) -> str:
        """Implement `Authenticator.authenticate`."""
        return ANONYMOUS.name

    async def is_known(self, name: str) -> bool:
        """Implement `Authenticator.is_known`. Tickets from a time with logins open nothing."""
        return name == ANONYMOUS.name

    async def check(self) -> str | None:
        """Implement `Authenticator.check`."""
        return None

    async def close(self) -> None:
        """Implement `Authenticator.close`."""


class TokenLogin:
    """Implements `Authenticator` for the tokens of the setting, or of the file that the setting names."""

    def __init__(self, setting: str, *, now: Callable[[], float] = time.monotonic) -> None:
        """Read the tokens.

        Args:
            setting: `name:token,name:token`, or the path of a file.
            now: A clock, in seconds.

        Raises:
            ValueError: The tokens cannot be used. The message repeats none of them.
        """
        self._now = now
        self._path = None if ":" in setting else Path(setting)
        self._content = b""
        self._read_at = now()
        self._reading = asyncio.Lock()
        self._is_broken = False
        try:
            self._names = _parse_setting(setting) if self._path is None else self._load(self._path)
        except OSError as error:
            raise ValueError(f"{FORM} ({(error.strerror or 'it cannot be read').lower()})") from None

    async def authenticate(self, credentials: Credentials) -> str:
        """Implement `Authenticator.authenticate`."""
        token = credentials.bearer_token()
        await self._refresh()
        name = self._names.get(_digest(token))
        if name is None:
            raise Unauthorized(_INVALID)
        return name

    async def is_known(self, name: str) -> bool:
        """Implement `Authenticator.is_known`."""
        await self._refresh()
        return name in self._names.values()

    async def check(self) -> str | None:
        """Implement `Authenticator.check`. A file that is broken later does not matter: the last contents hold."""
        return None

    async def close(self) -> None:
        """Implement `Authenticator.close`."""

    async def _refresh(self) -> None:
        """Read the file again if that was long ago. If it is broken, keep the last contents and log it once."""
        if self._path is None or self._now() - self._read_at < RELOAD_SECONDS:
            return
        async with self._reading:
            if self._now() - self._read_at < RELOAD_SECONDS:
                return
            try:
                self._names = await asyncio.to_thread(self._load, self._path)
                self._is_broken = False
            except (OSError, ValueError) as error:
                reason = (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)
                if not self._is_broken:
                    log.error("the file of API_TOKENS cannot be used; the last contents hold: %s", reason)
                self._is_broken = True
            self._read_at = self._now()

    def _load(self, path: Path) -> _Names:
        """Return the names of the file; those of before if it has not changed."""
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
        if content != self._content or not content:
            names = _parse_file(content)
            self._content = content
            return names
        return self._names


def _parse_setting(setting: str) -> _Names:
    entries: list[tuple[str, str, str]] = []
    for number, part in enumerate(setting.split(","), start=1):
        name, _, token = part.strip().partition(":")
        where = f"entry {number}"
        if len(token) < MIN_TOKEN_CHARS:
            raise ValueError(f"{where}: a token needs at least {MIN_TOKEN_CHARS} characters")
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"{where}: a token consists of visible ASCII characters without commas")
        entries.append((where, name.strip(), _digest(token)))
    return _by_digest(entries)


def _parse_file(content: bytes) -> _Names:
    entries: list[tuple[str, str, str]] = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, digest = text.partition(":")
        where = f"line {number}"
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{where}: must be name:hash, as `./run.sh token NAME` prints it")
        entries.append((where, name, digest))
    return _by_digest(entries)


def _by_digest(entries: Iterable[tuple[str, str, str]]) -> _Names:
    """Return the names by the digest of their token.

    Args:
        entries: For each token where it stands, its name and its digest.

    Raises:
        ValueError: A name is invalid, or a name or a token is there twice.
    """
    names: dict[str, str] = {}
    seen: set[str] = set()
    for where, name, digest in entries:
        try:
            _check_name(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if name in seen:
            raise ValueError(f"{where}: the name is there twice")
        if digest in names:
            raise ValueError(f"{where}: the token is there twice")
        names[digest] = name
        seen.add(name)
    return names


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError("a name has up to 64 letters, digits and . _ @ + -, a letter or digit first")


def _digest(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
