"""Explanations of TLS failures: they name the reason, and no host."""

import ssl

import pytest

from app.infrastructure.tls import explain_tls_failure


def certificate_error(code: int) -> ConnectionError:
    """Return an error as a client raises it, with the TLS library's error as its context."""
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed: not valid for 'db.example'")
    cause.verify_code = code
    error = ConnectionError("db.example")
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("code", "reason"), [(10, "expired"), (19, "trusted"), (62, "another name"), (64, "another name")]
)
def test_refused_certificate_is_explained_by_its_reason_without_the_host(code: int, reason: str) -> None:
    explanation = explain_tls_failure(certificate_error(code))
    assert explanation is not None
    assert reason in explanation
    assert "db.example" not in explanation


def test_error_that_has_only_a_text_is_explained_without_the_host() -> None:
    text = "db.example:27017: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"
    explanation = explain_tls_failure(OSError(text))
    assert explanation is not None
    assert "db.example" not in explanation


@pytest.mark.parametrize("error", [None, OSError("refused"), TimeoutError()])
def test_other_errors_have_no_tls_explanation(error: Exception | None) -> None:
    assert explain_tls_failure(error) is None
