"""Port: find out on whose behalf a request is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.domain.errors import Unauthorized

MAX_NAME = 255
"""Maximum length of a principal's name, in characters: that of a subject in OpenID Connect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Headers and peer address of a request, from which its principal is found."""

    headers: Sequence[tuple[bytes, bytes]]
    """Names, in lower case, and values of the headers, as the client or a proxy sent them."""
    peer: str
    """Address of the other end of the TCP connection; empty if it has none."""

    def values(self, name: str) -> list[bytes]:
        """Return the values of all headers of that name, which is in lower case."""
        wanted = name.encode()
        return [value for header, value in self.headers if header == wanted]

    def bearer_token(self) -> str:
        """Return the token of the `Authorization` header.

        Raises:
            Unauthorized: There is none, or more than one.
        """
        found = self.values("authorization")
        if not found:
            raise Unauthorized("a login is needed: send a token in the Authorization header")
        scheme, _, token = found[0].partition(b" ")
        if len(found) > 1 or scheme.lower() != b"bearer" or not (token := token.strip()):
            raise Unauthorized("the Authorization header must be there once, and its scheme must be Bearer")
        return token.decode("latin-1")


class Authenticator(Protocol):
    """One way to log in. All methods may be called at any time from many requests at once."""

    async def authenticate(self, credentials: Credentials) -> str:
        """Return the name of the principal; empty where there is no login.

        Raises:
            Unauthorized: The credentials are missing or invalid. The message does not repeat them.
            Unavailable: Whether they are valid cannot be checked now.
        """
        ...

    async def is_known(self, name: str) -> bool:
        """Return whether tickets and signed addresses of `name` may still be used.

        True also where nobody but an issuer elsewhere knows.
        """
        ...

    async def check(self) -> str | None:
        """Return why nobody can log in now, or None if they can."""
        ...

    async def close(self) -> None:
        """Release everything."""
        ...


def is_usable_name(name: str) -> bool:
    """Return whether a principal may have this name: printable, and neither empty nor too long."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()
