"""An OpenID Connect issuer on a loopback port, with keys that a test rotates."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "anker"

PRIVATE_KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "other RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "weak RS256": rsa.generate_private_key(public_exponent=65537, key_size=1024),
}
"""Private keys by the algorithm that they sign with. They are made once, because that takes long."""


def jwk(name: str, key_id: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the public key of `PRIVATE_KEYS[name]` as an issuer publishes it."""
    public = PRIVATE_KEYS[name].public_key()
    kind = {"ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}.get(name, RSAAlgorithm)
    data: dict[str, Any] = kind.to_jwk(public, as_dict=True)
    return {**data, **({} if key_id is None else {"kid": key_id}), **more}


class Issuer:
    """What the issuer publishes, and how often each of its addresses was requested."""

    def __init__(self) -> None:
        self.url = ""
        self.name: str | None = None
        """What its documents and tokens say; its address if None."""
        self.keys: list[Any] = [jwk("RS256", "k1")]
        self.jwks_uri: str | None = None
        self.padding = 0
        """Number of bytes that are added to the document of the keys."""
        self.status = 200
        self.requests: list[str] = []

    @property
    def issuer(self) -> str:
        return self.url if self.name is None else self.name

    def token(self, key: str = "RS256", key_id: str | None = "k1", /, **more: Any) -> str:
        """Return a signed token. `headers`, `algorithm` and claims replace the defaults."""
        headers: dict[str, Any] = {**({} if key_id is None else {"kid": key_id}), **more.pop("headers", {})}
        algorithm = more.pop("algorithm", key.rpartition(" ")[2])
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300, **more}
        return jwt.encode(claims, PRIVATE_KEYS[key], algorithm=algorithm, headers=headers)

    def document(self, path: str) -> bytes | None:
        if path == "/.well-known/openid-configuration":
            uri = f"{self.url}/keys" if self.jwks_uri is None else self.jwks_uri
            return json.dumps({"issuer": self.issuer, "jwks_uri": uri}).encode()
        if path == "/keys":
            return json.dumps({"keys": self.keys}).encode() + b" " * self.padding
        return None

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[None]:
        """Serve the documents, at `port` or any other."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                body = issuer.document(self.path)
                self.send_response(404 if body is None else issuer.status)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()
