"""The names and labels by which the engine's objects are known as ours: all that this service remembers of them.

object                      name                        labels beside anker.installation
a session's container       <prefix>-<session>          anker.role=sandbox, anker.session
its workspace (a volume)    <prefix>-<session>          anker.role=sandbox, anker.session
a waiting container         <prefix>-pool-<random>      anker.role=pool, anker.session="", anker.volume, anker.maker
its workspace               <prefix>-pool-<random>      anker.role=pool, anker.session=""
… both adopted:  the container is renamed to <prefix>-<session>, its labels stay as they were (they cannot change);
  an empty volume <prefix>-<session> with anker.session and anker.volume points to the workspace
the network                 SANDBOX_NETWORK             anker.role=network, anker.egress
the guard's helper          <prefix>-guard-<random>     anker.role=guard
"""

import secrets
from collections.abc import Mapping
from typing import Literal

from app.infrastructure.sandbox.client.shell_ids import encode_scope

INSTALLATION = "anker.installation"
SESSION = "anker.session"
ROLE = "anker.role"
VOLUME = "anker.volume"
"""On a waiting container its own first name; on a pointer the volume that is the session's workspace."""
MAKER = "anker.maker"
"""The process that made a waiting container: only it may adopt the container."""
EGRESS = "anker.egress"

Role = Literal["sandbox", "pool", "network", "guard"]
Labels = Mapping[str, str]


class Names:
    """The names and labels of one installation."""

    def __init__(self, prefix: str, installation: str) -> None:
        self._prefix = prefix
        self.installation = installation
        self.mine = {INSTALLATION: installation}
        """What every object of this installation carries, and nobody else's does."""

    def of(self, session_id: str) -> str:
        """The name of a session's container, and of its volume."""
        return f"{self._prefix}-{encode_scope(session_id)}"

    def sessions(self, name: str, labels: Labels) -> set[str]:
        """The ids of the sessions that an object of this name and with these labels may belong to."""
        # An adopted container's label stays empty, and its name says it, unless that is a hash: then its pointer does.
        named = name.removeprefix(f"{self._prefix}-")
        told = {labels.get(SESSION, ""), named if self.of(named) == name else ""}
        return told - {""}

    def waiting(self) -> str:
        """A new name for a waiting container and its volume."""
        return f"{self._prefix}-pool-{secrets.token_hex(6)}"

    def guard(self) -> str:
        """A new name for a helper of the guard."""
        return f"{self._prefix}-guard-{secrets.token_hex(6)}"

    def labels(self, role: Role, **more: str) -> dict[str, str]:
        """The labels of a new object; `more` without their `anker.`."""
        return {**self.mine, ROLE: role, **{f"anker.{name}": value for name, value in more.items()}}

    def owns(self, labels: Labels) -> bool:
        """Whether an object with these labels is this installation's."""
        return labels.get(INSTALLATION) == self.installation


def is_waiting(name: str, labels: Labels) -> bool:
    """Whether a container of this name belongs to the pool still: an adopted one has another name than at first."""
    return labels.get(ROLE) == "pool" and labels.get(VOLUME) == name
