"""No login: everyone who can reach the service is the same principal."""

from app.domain.external.authenticator import Credentials
from app.domain.models.principal import ANONYMOUS


class NoLogin:
    """Implements `Authenticator`."""

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
