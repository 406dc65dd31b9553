"""The person or program on whose behalf a request is made."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The maker of a request. A session, file, ticket or share belongs to the name of its creator."""

    name: str
    """Name of the owner; empty where there is no login."""
    is_admin: bool = False
    """Whether the principal may list and stop the sessions of all owners."""


ANONYMOUS = Principal(name="")
"""The one principal of a service without a login."""
