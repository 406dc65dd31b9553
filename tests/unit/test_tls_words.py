"""What TLS had against a server is said without the names that the library says it with."""

import ssl

import pytest

from app.infrastructure.tls import tls_words


def refused(code: int) -> ConnectionError:
    """As a client raises it, with the library's error as what led to it."""
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed: not valid for 'db.example'")
    cause.verify_code = code
    error = ConnectionError("db.example")
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("code", "word"), [(10, "expired"), (19, "trusted"), (62, "another name"), (64, "another name")]
)
def test_a_certificate_that_is_refused_is_told_by_its_reason(code: int, word: str) -> None:
    words = tls_words(refused(code))
    assert words is not None
    assert word in words
    assert "db.example" not in words


def test_an_error_of_which_only_the_text_is_left_is_known_too() -> None:
    words = tls_words(OSError("db.example:27017: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"))
    assert words is not None
    assert "db.example" not in words


@pytest.mark.parametrize("error", [None, OSError("refused"), TimeoutError()])
def test_what_is_no_matter_of_tls_has_no_words(error: Exception | None) -> None:
    assert tls_words(error) is None
