"""What can go wrong with the engine, in words that the operator can act on.

SandboxUnavailable
├── EngineAway     it does not answer
├── Missing        there is no such container, volume or network
├── Taken          the name is taken, or the object is in use
├── ImageMissing   the sandbox's image is not there
└── Refused        it said no; what it said exactly is in the log only, for it may name paths
"""

from app.domain.errors import SandboxUnavailable

AWAY = "The Docker engine does not answer. Start it; sandboxes can be had again as soon as it runs."
NOT_ALLOWED = "The Docker engine's socket is closed to this service: run it as a user who may use Docker."
NO_IMAGE = "The sandbox's image (SANDBOX_IMAGE) is not on this machine: ./run.sh builds it, or pull it."
STRANGE = "The Docker engine refused for a reason that the service's log has."

_KNOWN = (
    ("no space left", "The disk of the Docker engine is full."),
    ("unknown runtime", "SANDBOX_RUNTIME: the Docker engine has no such runtime."),
    ("invalid runtime", "SANDBOX_RUNTIME: the Docker engine has no such runtime."),
    ("range of cpus", "SANDBOX_CPUS: the machine has fewer processors."),
    ("minimum memory limit", "SANDBOX_MEMORY: too little."),
    ("invalid container name", "SANDBOX_NAME_PREFIX: not a name that Docker takes."),
    ("seccomp", "The Docker engine cannot filter system calls (seccomp), which sandboxes need."),
    ("address pool", "The Docker engine has no addresses left for SANDBOX_NETWORK: remove networks that nobody uses."),
    ("no available ipv4 addresses", "SANDBOX_NETWORK has no addresses left."),
    ("cannot allocate memory", "The machine has no memory left for another sandbox."),
)
"""Pieces of what engines say, in lower case, and what that means to whoever runs this service."""


class EngineAway(SandboxUnavailable):
    """The engine does not answer."""


class Missing(SandboxUnavailable):
    """The engine has no such object (any more)."""


class Taken(SandboxUnavailable):
    """The name is taken, or the object is in use or on its way out."""


class ImageMissing(SandboxUnavailable):
    """The sandbox's image is not there."""


class Refused(SandboxUnavailable):
    """The engine said no."""


def refusal(status: int, said: str) -> SandboxUnavailable:
    """The failure that an HTTP `status` and the engine's own words stand for."""
    lower = said.lower()
    for piece, meaning in _KNOWN:
        if piece in lower:
            return Refused(meaning)
    if status == 404:
        return Missing("The Docker engine has no such object any more.")
    if status in (403, 409):
        return Taken("The Docker engine says that this is in use.")
    return Refused(STRANGE)
