"""What TLS had against a server, in words that an operator can act on."""

import ssl

_WRONG_NAME = {62, 64}
"""The certificate is for another host name, or another address."""

_EXPIRED = 10


def tls_words(error: BaseException | None) -> str | None:
    """Why TLS failed, as `error` or one of those that led to it says; None when something else did.

    Without the names and addresses that the library's own words have.
    """
    while error is not None:
        match error:
            case ssl.SSLCertVerificationError():
                return _certificate_words(error.verify_code)
            case ssl.SSLError():
                return "TLS with it fails"
            case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):  # of a client that keeps no more than the text
                return "its certificate is not trusted here, or is for another name"
            case _:
                error = error.__cause__ or error.__context__
    return None


def _certificate_words(code: int) -> str:
    if code in _WRONG_NAME:
        return "its certificate is for another name"
    if code == _EXPIRED:
        return "its certificate has expired"
    return "its certificate is not signed by anybody who is trusted here"
