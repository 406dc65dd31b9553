"""Logins by the tokens of an OpenID Connect issuer: JWTs, checked with the keys that the issuer publishes."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import jwt
import orjson

from app.domain.errors import Unauthorized, Unavailable
from app.domain.external.authenticator import Credentials, is_usable_name
from app.infrastructure.tls import explain_tls_failure

log = logging.getLogger(__name__)

LEEWAY_SECONDS = 30
"""Seconds by which the issuer's clock may differ from ours."""

MAX_TOKEN_CHARS = 16 * 1024
"""Maximum length of a token, in characters."""

FETCH_SECONDS = 5.0
"""Maximum time to fetch one document of the issuer, in seconds."""

MAX_DOCUMENT_BYTES = 256 * 1024
"""Maximum size of a document of the issuer, in bytes."""

MAX_KEYS = 100
"""Maximum number of keys of an issuer; further ones are ignored."""

REFRESH_SECONDS = 300.0
"""Age of the keys from which they are fetched again in the background, in seconds."""

MIN_FETCH_PAUSE = 10.0
"""Minimum time between two attempts to fetch the keys, in seconds, however many tokens name an unknown key."""

MAX_KEYS_AGE = 86_400.0
"""Maximum age of the keys while the issuer cannot be reached, in seconds. Older ones may have been withdrawn."""

MIN_RSA_BITS = 2048
"""Minimum size of an RSA key, in bits."""

_ALGORITHMS: Mapping[str, frozenset[str]] = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"EdDSA"}),
}
"""Accepted algorithms by the type of the key or its curve. With each, only the issuer can sign."""

_INVALID = "the token is not valid here"

_REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is from another issuer",
}
"""What a client is told, by the error of the library; `_INVALID` for others."""


class _Unusable(Exception):
    """The issuer cannot be reached, or one of its documents cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _IssuerKey:
    key_id: object
    algorithms: frozenset[str]
    key: Any
    """The public key, in the form that the library verifies with."""


class OidcLogin:
    """Implements `Authenticator`. The name of a principal is the subject (`sub`), the only claim that is never reused.

    Known keys go on working while the issuer is away.
    """

    def __init__(self, *, issuer: str, audience: str, now: Callable[[], float] = time.monotonic) -> None:
        """Create the adapter. Nothing is fetched before the first token.

        Args:
            issuer: Address of the issuer.
            audience: What a token must be meant for.
            now: A clock, in seconds.

        Raises:
            ValueError: The address cannot be used. The message does not repeat it.
        """
        _check_address(issuer)
        if urlsplit(issuer).query or urlsplit(issuer).fragment:
            raise ValueError("must be an address without a query and a fragment")
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._http = httpx.AsyncClient(timeout=FETCH_SECONDS, headers={"Accept-Encoding": "identity"})
        self._keys: tuple[_IssuerKey, ...] = ()
        self._fetched_at = self._tried_at = float("-inf")
        self._problem = "not fetched yet"
        self._fetching: asyncio.Task[None] | None = None

    async def authenticate(self, credentials: Credentials) -> str:
        """Implement `Authenticator.authenticate`."""
        token = credentials.bearer_token()
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthorized(_INVALID)
        try:
            header = jwt.get_unverified_header(token)
            algorithm = str(header.get("alg"))
            claims = jwt.decode(
                token,
                await self._key(header.get("kid"), algorithm),
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            reason = next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), _INVALID)
            raise Unauthorized(reason) from None
        name: object = claims["sub"]
        if not isinstance(name, str) or not is_usable_name(name):
            raise Unauthorized("the token names a subject that cannot be used")
        return name

    async def is_known(self, name: str) -> bool:
        """Implement `Authenticator.is_known`. Only the issuer knows its users."""
        return bool(name)

    async def check(self) -> str | None:
        """Implement `Authenticator.check`."""
        if not self._has_keys():
            await self._fetch()
        return None if self._has_keys() else f"the keys of OIDC_ISSUER: {self._problem}"

    async def close(self) -> None:
        """Implement `Authenticator.close`."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._http.aclose()

    async def _key(self, key_id: object, algorithm: str) -> Any:
        """Return the key that a token must be signed with; fetch the keys again if there is none.

        Raises:
            Unauthorized: The issuer has no such key.
            Unavailable: There are no keys, and the issuer cannot be reached.
        """
        if self._has_keys():
            if self._now() - self._fetched_at > REFRESH_SECONDS:
                self._start_fetching()  # in the background: a slow issuer delays nobody
            if (key := self._find(key_id, algorithm)) is not None:
                return key
        await self._fetch()
        if not self._has_keys():
            raise Unavailable("the login cannot be checked now; ask again", retry_after=round(MIN_FETCH_PAUSE))
        if (key := self._find(key_id, algorithm)) is not None:
            return key
        raise Unauthorized(_INVALID)

    def _find(self, key_id: object, algorithm: str) -> Any:
        """Return the key with that id. A token without an id is unambiguous only where one key fits."""
        found = [key for key in self._keys if algorithm in key.algorithms and key_id in (None, key.key_id)]
        return found[0].key if len(found) == 1 else None

    def _has_keys(self) -> bool:
        return bool(self._keys) and self._now() - self._fetched_at < MAX_KEYS_AGE

    async def _fetch(self) -> None:
        """Wait until the keys are fetched; do nothing if that was tried a moment ago."""
        if (task := self._start_fetching()) is not None:
            await asyncio.shield(task)

    def _start_fetching(self) -> asyncio.Task[None] | None:
        """Return the task that fetches the keys, which all requests share; None if that was tried a moment ago."""
        if self._fetching is None or self._fetching.done():
            if self._now() - self._tried_at < MIN_FETCH_PAUSE:
                return None
            self._tried_at = self._now()
            self._fetching = asyncio.create_task(self._fetch_keys())
        return self._fetching

    async def _fetch_keys(self) -> None:
        try:
            discovered = await self._document(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
            # Not only a formality: the name decides whose tokens are accepted.
            if discovered.get("issuer") != self._issuer:
                raise _Unusable("its discovery document names another issuer (check the spelling, to the last slash)")
            address = str(discovered.get("jwks_uri"))
            try:
                _check_address(address)
            except ValueError as error:
                raise _Unusable(f"jwks_uri {error}") from None
            keys = tuple(_usable_keys((await self._document(address)).get("keys")))
            if not keys:
                raise _Unusable("it publishes no key that can be used")
        except _Unusable as error:
            self._problem = str(error)
            log.warning("the keys of OIDC_ISSUER cannot be fetched: %s", error)
            return
        self._keys, self._fetched_at = keys, self._now()

    async def _document(self, address: str) -> Mapping[str, object]:
        """Return a JSON document of the issuer.

        Raises:
            _Unusable: It cannot be fetched, or is none.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(FETCH_SECONDS), self._http.stream("GET", address) as response:
                if response.status_code != HTTPStatus.OK:
                    raise _Unusable(f"it replied with status {response.status_code}")
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_DOCUMENT_BYTES:
                        raise _Unusable(f"a document is larger than {MAX_DOCUMENT_BYTES} bytes")
            document: object = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise _Unusable("a document is not JSON") from None
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise _Unusable(explain_tls_failure(error) or f"no reply ({type(error).__name__})") from None
        if not isinstance(document, dict):
            raise _Unusable("a document is not a JSON object")
        return cast("Mapping[str, object]", document)


def _usable_keys(keys: object) -> Iterable[_IssuerKey]:
    """Yield the public keys for signatures."""
    for data in cast("list[object]", keys)[:MAX_KEYS] if isinstance(keys, list) else ():
        if not isinstance(data, dict):
            continue
        found = cast("dict[str, object]", data)
        algorithms = _ALGORITHMS.get(str(found.get("crv") or found.get("kty")), frozenset())
        if "alg" in found:
            algorithms &= {str(found["alg"])}
        if not algorithms or found.get("use", "sig") != "sig" or "d" in found:
            continue
        try:
            key: Any = jwt.PyJWK(found, algorithm=min(algorithms)).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if getattr(key, "key_size", MIN_RSA_BITS) >= MIN_RSA_BITS or found.get("kty") != "RSA":
            yield _IssuerKey(key_id=found.get("kid"), algorithms=algorithms, key=key)


def _check_address(address: str) -> None:
    """Refuse an address of which somebody on the way could change the content.

    Raises:
        ValueError: It is none, or is neither HTTPS nor on this machine.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not a valid address") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError("must begin with https://, or be on this machine")
    if not host or "@" in parts.netloc:
        raise ValueError("must be an address with a host and without a user")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
