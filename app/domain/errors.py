"""The error tree.

    AnkerError
    ├── InvalidInput              the request cannot be used
    ├── Unauthorized              no valid credential or ticket
    ├── Forbidden                 the credential does not allow the request
    ├── NotFound                  the resource does not exist or belongs to another owner
    ├── Conflict                  the state of the resource does not allow the request
    │   ├── Superseded            a newer user message is stored; the run must read it
    │   └── LeaseLost             another worker has the session's run
    ├── TooLarge                  a size limit is exceeded
    ├── LimitReached              a limit of the owner or of a session; carries `retry_after`
    ├── Unavailable               a dependency cannot be used now; carries `retry_after`
    │   ├── StoreUnavailable
    │   │   └── StaleCheckpoint   a write that seemed to have failed had succeeded
    │   └── SandboxUnavailable
    ├── SandboxFailure            the sandbox refused the request
    │   └── BrowserFailure        the browser could not carry out the request
    ├── SearchFailure             the search engine refused, failed or timed out
    ├── ModelFailure              the model refused, failed or timed out
    │   ├── ContextTooLong        the request exceeds the model's context window
    │   └── MalformedReply        the server says that the model wrote an invalid tool call
    ├── RunGivenUp                too many processes died during a run
    └── RunLimitReached           the run has used what one user message, or a day, grants

Messages are written for the user or the model. They contain no stack traces, server paths or secrets. Adapters
translate their vendor's exceptions into these classes; only `interfaces/errors.py` maps them to HTTP status codes.
"""


class AnkerError(Exception):
    """Root of all expected errors. `str(error)` may be shown to a user."""


class InvalidInput(AnkerError):
    """The request cannot be used. Repeating it will not help."""


class Unauthorized(AnkerError):
    """The request has no valid credential or ticket. The message never contains the one that was sent."""


class Forbidden(AnkerError):
    """The credential is valid but does not allow the request."""


class NotFound(AnkerError):
    """The resource does not exist, or it belongs to another owner."""


class Conflict(AnkerError):
    """The state of the resource does not allow the request."""


class Superseded(Conflict):
    """A user message that the run has not read is stored, so the run may not end."""


class LeaseLost(Conflict):
    """The session has been leased again since the writer's lease was granted. Write nothing more."""


class TooLarge(AnkerError):
    """A size limit is exceeded. The message names the limit."""


class _Retryable(AnkerError):
    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Number of whole seconds after which a retry makes sense."""


class LimitReached(_Retryable):
    """A limit of the owner, of a client or of a session is reached. The message names the limit.

    `limit` is the name of the limit in the metric of refusals.
    """

    def __init__(self, message: str, *, limit: str, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit


class Unavailable(_Retryable):
    """A dependency cannot be used now."""


class StoreUnavailable(Unavailable):
    """The store cannot be read or written, for example because a disk is full or a database is down."""


class StaleCheckpoint(StoreUnavailable):
    """The stored checkpoint is not the one that the writer expected: a write with unknown outcome had succeeded.

    Nothing was written. Load the checkpoint and continue from it.
    """


class SandboxUnavailable(Unavailable):
    """No sandbox can be started, or the session's sandbox does not respond."""


class SandboxFailure(AnkerError):
    """The sandbox refused the request, for example because a file does not exist or a shell is busy.

    `status` is the sandbox's HTTP status: 404 if something does not exist, 409 if a state forbids the request.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class BrowserFailure(SandboxFailure):
    """The browser could not carry out the request, for example because of an outdated index or a hanging page.

    `status` is 404 if something does not exist, 409 if a state forbids the request, 400 if the request is invalid.
    """


class ModelFailure(AnkerError):
    """The model did not return a usable reply. The message says what the user can do."""


class ContextTooLong(ModelFailure):
    """The request exceeds the model's context window. A shorter request can succeed.

    `limit_tokens` is the size of the window, if the server named it.
    """

    def __init__(self, message: str, *, limit_tokens: int | None = None) -> None:
        super().__init__(message)
        self.limit_tokens = limit_tokens


class MalformedReply(ModelFailure):
    """The server rejected what the model wrote. The model can correct it if it is asked again.

    `generated` is what the model wrote, as far as the server repeats it.
    """

    def __init__(self, message: str, *, generated: str = "") -> None:
        super().__init__(message)
        self.generated = generated


class RunGivenUp(AnkerError):
    """Too many processes died during a run. The message tells the user so."""


class RunLimitReached(AnkerError):
    """The run has used what one user message grants, or its owner what a day grants. The message names the limit."""

    def __init__(self, limit: str, *, is_daily: bool = False) -> None:
        super().__init__(limit)
        self.is_daily = is_daily
        """Whether the limit is one of the owner and of a day, and another message today would not help."""


class SearchFailure(AnkerError):
    """The search engine refused, failed or timed out. The message tells the model why."""
