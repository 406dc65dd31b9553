"""The one error tree.

    AnkerError
    ├── InvalidInput          the caller sent something unusable
    ├── Unauthorized          who asks has not shown that they may; a ticket that opens nothing (any more)
    ├── Forbidden             who asks is known, and may not do this
    ├── NotFound              there is no such resource, or it is not the caller's
    ├── Conflict              the state does not allow it
    │   ├── Superseded        a newer user message came first; the run must read it
    │   └── LeaseLost         another worker has the session's run now
    ├── TooLarge              more than a limit allows
    ├── LimitReached          too many at once; carries `retry_after`
    ├── Unavailable           something we depend on is away; carries `retry_after`
    │   ├── StoreUnavailable
    │   │   └── StaleCheckpoint      a write of the run that seemed to have failed has happened after all
    │   └── SandboxUnavailable
    ├── SandboxFailure        the sandbox answered, but not with success
    │   └── BrowserFailure    the page, or the browser, did not do what was asked
    ├── SearchFailure         the search engine refused, failed or timed out
    ├── ModelFailure          the model refused, failed or timed out
    └── RunGivenUp            too many processes died with a run

Every message is written for the person (or the model) who reads it: no stack traces, server paths or secrets.
Adapters translate their vendor's exceptions into these; `interfaces/errors.py` alone knows HTTP status codes.
"""


class AnkerError(Exception):
    """Root of every failure that we foresee. `str(error)` may be shown to a user."""


class InvalidInput(AnkerError):
    """The caller sent something unusable; sending it again will not help."""


class Unauthorized(AnkerError):
    """Nothing was shown that opens this, or something that does not (any more). The message never repeats it."""


class Forbidden(AnkerError):
    """Who asks is known, and what they were given does not allow this."""


class NotFound(AnkerError):
    """No such resource, or it belongs to somebody else."""


class Conflict(AnkerError):
    """The resource is in a state that does not allow the request."""


class Superseded(Conflict):
    """A user message arrived that the run has not read yet, so the run may not end."""


class LeaseLost(Conflict):
    """The lease under which something was to be written is over, and the session leased anew: stop, write nothing."""


class TooLarge(AnkerError):
    """More than a limit allows; the message names the limit."""


class _Retryable(AnkerError):
    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Whole seconds after which trying again makes sense."""


class LimitReached(_Retryable):
    """Too many requests or resources at once."""


class Unavailable(_Retryable):
    """Something that we depend on does not answer now."""


class StoreUnavailable(Unavailable):
    """The store cannot be read or written: a full disk, a lost database."""


class StaleCheckpoint(StoreUnavailable):
    """The run stands elsewhere in the store than its writer believed: a write whose outcome it never heard of has
    happened. Nothing was written now; load, and go on from there."""


class SandboxUnavailable(Unavailable):
    """No sandbox can be had, or the session's sandbox does not answer."""


class SandboxFailure(AnkerError):
    """The sandbox understood the request and refused it (no such file, shell busy, …).

    `status` is the sandbox's HTTP status: 404 for what does not exist, 409 for a state that forbids it.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class BrowserFailure(SandboxFailure):
    """The browser understood the request and could not carry it out (a stale index, a page that does not answer).

    `status`: 404 for what does not exist, 409 for a state that forbids it, 400 for a request that makes no sense.
    """


class ModelFailure(AnkerError):
    """The model could not answer, after all retries. The message says what a person can do about it."""


class RunGivenUp(AnkerError):
    """A run cost too many processes their lives. The message says so to the user."""


class SearchFailure(AnkerError):
    """The search engine refused, failed or timed out; the text tells the model why."""
