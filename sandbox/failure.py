"""What goes wrong as foreseen. Apart from the envelope, so that what raises it need not load a web framework."""


class Failure(Exception):
    """An expected failure: `status` is the HTTP status, `message` what a model or a person can act on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
