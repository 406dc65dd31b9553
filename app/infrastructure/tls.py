"""Explanations of TLS failures that an operator can act on."""

import ssl

_WRONG_NAME_CODES = {62, 64}
"""OpenSSL codes of a certificate for another host name or another address."""

_EXPIRED_CODE = 10
"""OpenSSL code of an expired certificate."""


def explain_tls_failure(error: BaseException | None) -> str | None:
    """Return why TLS failed according to `error` or one of its causes; None if TLS did not fail.

    The explanation has no host names and addresses, which the messages of the libraries contain.
    """
    while error is not None:
        match error:
            case ssl.SSLCertVerificationError():
                return _explain_certificate(error.verify_code)
            case ssl.SSLError():
                return "TLS with it fails"
            case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):  # some clients keep only the text of the cause
                return "its certificate is not trusted here, or is for another name"
            case _:
                error = error.__cause__ or error.__context__
    return None


def _explain_certificate(code: int) -> str:
    if code in _WRONG_NAME_CODES:
        return "its certificate is for another name"
    if code == _EXPIRED_CODE:
        return "its certificate has expired"
    return "its certificate is not signed by an authority that is trusted here"
