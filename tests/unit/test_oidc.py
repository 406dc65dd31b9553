"""JWTs of an issuer that a real server on loopback plays."""

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.domain.errors import Unauthorized, Unavailable
from app.domain.external.authenticator import Credentials
from app.infrastructure.auth.oidc import (
    LEEWAY_SECONDS,
    MAX_DOCUMENT_BYTES,
    MAX_KEYS_AGE,
    MIN_FETCH_PAUSE,
    REFRESH_SECONDS,
    OidcLogin,
)
from tests.support.eventually import eventually
from tests.support.issuer import AUDIENCE, PRIVATE_KEYS, Issuer, jwk

KEYS = "/keys"


class Service:
    """The adapter, its issuer, and a clock that the test sets."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.time = 1_000.0
        self.login = OidcLogin(issuer=issuer.url, audience=AUDIENCE, now=lambda: self.time)

    async def name(self, token: str) -> str:
        headers = [(b"authorization", b"Bearer " + token.encode())]
        return await self.login.authenticate(Credentials(headers=headers, peer=""))

    async def refusal(self, token: str) -> str:
        """Return why the token is refused."""
        with pytest.raises(Unauthorized) as refused:
            await self.name(token)
        assert token not in str(refused.value)
        return str(refused.value)

    @property
    def fetches(self) -> int:
        return self.issuer.requests.count(KEYS)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    issuer = Issuer()
    with issuer.serve():
        service = Service(issuer)
        yield service
        await service.login.close()


def encoded(part: object) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize("key", ["RS256", "ES256", "EdDSA"])
async def test_token_of_the_issuer_stands_for_its_subject(service: Service, key: str) -> None:
    service.issuer.keys = [jwk("other RS256", "old"), jwk(key, "k1")]
    assert await service.name(service.issuer.token(key)) == "alice"
    assert (
        await service.name(service.issuer.token(key, aud=["other", AUDIENCE], sub="auth0|5f7c8ec7")) == "auth0|5f7c8ec7"
    )
    assert service.fetches == 1


@pytest.mark.parametrize("algorithm", ["RS512", "PS256"])
async def test_key_without_an_algorithm_accepts_all_of_its_type(service: Service, algorithm: str) -> None:
    assert await service.name(service.issuer.token(algorithm=algorithm)) == "alice"
    service.issuer.keys = [jwk("RS256", "k2", alg="RS256")]
    service.time += MIN_FETCH_PAUSE
    await service.refusal(service.issuer.token("RS256", "k2", algorithm=algorithm))


WRONG_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"aud": "somebody else"}, "the token is for another audience"),
    ({"aud": None}, "the token is not valid here"),
    ({"aud": []}, "the token is not valid here"),
    ({"aud": {"anker": 1}}, "the token is for another audience"),
    ({"iss": "https://evil.example"}, "the token is from another issuer"),
    ({"iss": None}, "the token is not valid here"),
    ({"exp": 1}, "the token has expired"),
    ({"exp": None}, "the token is not valid here"),
    ({"exp": "soon"}, "the token is not valid here"),
    ({"exp": float("inf")}, "the token is not valid here"),
    ({"nbf": 4_000_000_000}, "the token is not valid yet"),
    ({"iat": 4_000_000_000}, "the token is not valid yet"),
    ({"sub": None}, "the token is not valid here"),
    ({"sub": ""}, "the token names a subject that cannot be used"),
    ({"sub": "a" * 256}, "the token names a subject that cannot be used"),
    ({"sub": "a\nb"}, "the token names a subject that cannot be used"),
    ({"sub": "a\ud800"}, "the token names a subject that cannot be used"),
    ({"sub": " alice"}, "the token names a subject that cannot be used"),
    ({"sub": 5}, "the token is not valid here"),
]
"""Claims, and why a token with them is refused."""


async def test_token_with_a_wrong_claim_is_refused_with_the_reason(service: Service) -> None:
    assert await service.name(service.issuer.token()) == "alice"
    for claims, reason in WRONG_CLAIMS:
        assert await service.refusal(signed(service.issuer, claims)) == reason, claims


def signed(issuer: Issuer, claims: dict[str, Any]) -> str:
    """Return a token that the issuer signed. The library would not encode some of these claims."""
    complete = {"iss": issuer.issuer, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 60, **claims}
    payload = {name: value for name, value in complete.items() if value is not None}
    text = f"{encoded({'alg': 'RS256', 'kid': 'k1'})}.{encoded(payload)}"
    signature: bytes = jwt.get_algorithm_by_name("RS256").sign(text.encode(), PRIVATE_KEYS["RS256"])
    return f"{text}.{encoded(signature)}"


async def test_clocks_may_differ_a_little(service: Service) -> None:
    now = time.time()
    assert await service.name(service.issuer.token(exp=now - LEEWAY_SECONDS + 10)) == "alice"
    assert await service.name(service.issuer.token(nbf=now + LEEWAY_SECONDS - 10)) == "alice"
    await service.refusal(service.issuer.token(exp=now - LEEWAY_SECONDS - 1))


async def test_unsigned_and_wrongly_signed_tokens_are_refused(service: Service) -> None:
    claims = jwt.decode(service.issuer.token(), options={"verify_signature": False})
    header, payload, signature = service.issuer.token().split(".")
    public = PRIVATE_KEYS["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    hmac = jwt.get_algorithm_by_name("HS256")
    confused = f"{encoded({'alg': 'HS256', 'kid': 'k1'})}.{encoded(claims)}"
    forged = [
        jwt.encode(claims, None, algorithm="none"),  # type: ignore[arg-type]
        f"{encoded({'alg': 'none', 'kid': 'k1'})}.{payload}.",
        f"{encoded({'alg': 'nOnE', 'kid': 'k1'})}.{payload}.{signature}",
        f"{encoded({'alg': ['RS256'], 'kid': 'k1'})}.{payload}.{signature}",
        f"{encoded({'kid': 'k1'})}.{payload}.{signature}",
        f"{confused}.{encoded(hmac.sign(confused.encode(), public))}",
        jwt.encode(claims, "a-secret-that-is-long-enough-for-hmac", algorithm="HS256", headers={"kid": "k1"}),
        service.issuer.token("other RS256", "k1"),
        service.issuer.token("ES256", "k1"),
        f"{header}.{encoded({**claims, 'sub': 'admin'})}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{payload}.{signature}.x",
        "not-a-token",
        "..",
        encoded(b"[" * 9_000) + f".{payload}.{signature}",
        encoded(b'{"alg":' * 1_500) + f".{payload}.{signature}",
    ]
    for token in forged:
        assert await service.refusal(token) == "the token is not valid here", token


@pytest.mark.parametrize("header", ["jku", "x5u", "jwk", "crit", "x5c"])
async def test_token_cannot_bring_its_own_key(service: Service, header: str) -> None:
    mine = Issuer()
    mine.keys = [jwk("other RS256", "mine")]
    with mine.serve():
        value: Any = {"jku": f"{mine.url}/keys", "x5u": f"{mine.url}/keys", "jwk": mine.keys[0]}.get(header, ["exp"])
        token = service.issuer.token("other RS256", "mine", headers={header: value})
        await service.refusal(token)
        assert mine.requests == []


async def test_token_of_a_megabyte_is_refused_without_looking_at_it(service: Service) -> None:
    await service.refusal(service.issuer.token(padding="x" * 1_000_000))
    assert service.issuer.requests == []


async def test_token_without_a_key_id_needs_an_issuer_with_one_key(service: Service) -> None:
    token = service.issuer.token("RS256", None)
    assert await service.name(token) == "alice"
    service.issuer.keys = [jwk("RS256", "k1"), jwk("other RS256", "k2")]
    service.time += REFRESH_SECONDS + 1
    await service.name(token)  # starts to fetch the keys again
    await eventually(lambda: service.fetches == 2)
    await eventually_refused(service, token)


async def eventually_refused(service: Service, token: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await service.name(token)
            except Unauthorized:
                return
            await asyncio.sleep(0.01)


async def test_rotated_key_is_fetched_at_its_first_token(service: Service) -> None:
    assert await service.name(service.issuer.token()) == "alice"
    service.issuer.keys = [jwk("ES256", "k2")]
    service.time += MIN_FETCH_PAUSE
    assert await service.name(service.issuer.token("ES256", "k2")) == "alice"
    await service.refusal(service.issuer.token())  # the withdrawn key
    assert service.fetches == 2


async def test_withdrawn_key_is_refused_after_a_while(service: Service) -> None:
    token = service.issuer.token()
    assert await service.name(token) == "alice"
    service.issuer.keys = [jwk("ES256", "k2")]
    service.time += REFRESH_SECONDS + 1
    await eventually_refused(service, token)


async def test_flood_of_unknown_key_ids_reaches_the_issuer_once_in_a_while(service: Service) -> None:
    assert await service.name(service.issuer.token()) == "alice"
    service.time += MIN_FETCH_PAUSE
    tokens = [service.issuer.token("other RS256", f"forged-{number}") for number in range(30)]
    await asyncio.gather(*(service.refusal(token) for token in tokens))
    for token in tokens:
        await service.refusal(token)
    assert service.fetches == 2
    assert await service.name(service.issuer.token()) == "alice"


async def test_known_keys_work_while_the_issuer_is_away(service: Service) -> None:
    token = service.issuer.token()
    assert await service.name(token) == "alice"
    service.issuer.status = 500
    service.time += REFRESH_SECONDS + 1
    assert await service.name(token) == "alice"
    await service.refusal(service.issuer.token("ES256", "k2"))
    assert await service.login.check() is None
    service.time += MAX_KEYS_AGE
    with pytest.raises(Unavailable):
        await service.name(token)


async def test_issuer_that_is_away_gives_503_without_asking_it_each_time(service: Service) -> None:
    service.issuer.status = 500
    for _ in range(5):
        with pytest.raises(Unavailable) as failure:
            await service.name(service.issuer.token())
        assert failure.value.retry_after == MIN_FETCH_PAUSE
    assert len(service.issuer.requests) == 1
    assert await service.login.check() == "the keys of OIDC_ISSUER: it replied with status 500"
    service.issuer.status = 200
    service.time += MIN_FETCH_PAUSE
    assert await service.name(service.issuer.token()) == "alice"
    assert await service.login.check() is None


async def test_issuer_that_nobody_serves_gives_503(service: Service) -> None:
    login = OidcLogin(issuer="http://127.0.0.1:9", audience=AUDIENCE)
    credentials = Credentials(headers=[(b"authorization", b"Bearer " + service.issuer.token().encode())], peer="")
    with pytest.raises(Unavailable):
        await login.authenticate(credentials)
    await login.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"padding": MAX_DOCUMENT_BYTES}, "a document is larger than"),
        ({"name": "https://other.example"}, "its discovery document names another issuer"),
        ({"jwks_uri": "http://keys.example/keys"}, "jwks_uri must begin with https://"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri must begin with https://"),
        ({"keys": []}, "it publishes no key that can be used"),
        ({"keys": [jwk("weak RS256", "k1")]}, "it publishes no key that can be used"),
        ({"keys": [jwk("RS256", "k1", use="enc")]}, "it publishes no key that can be used"),
        ({"keys": [jwk("RS256", "k1", alg="HS256")]}, "it publishes no key that can be used"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}, 5, None, {}]}, "it publishes no key that can be used"),
        ({"keys": [{"kty": "RSA", "n": "!", "e": "AQAB", "kid": "k1"}]}, "it publishes no key that can be used"),
    ],
    ids=["large", "other name", "http", "file", "none", "weak", "for encryption", "symmetric", "no key", "broken"],
)
async def test_unusable_documents_of_the_issuer_let_nobody_in(
    service: Service, change: dict[str, Any], problem: str
) -> None:
    token = service.issuer.token()
    for name, value in change.items():
        setattr(service.issuer, name, value)
    with pytest.raises(Unavailable):
        await service.name(token)
    service.time += MIN_FETCH_PAUSE
    assert problem in str(await service.login.check())


@pytest.mark.parametrize(
    "issuer",
    [
        "",
        "login.example",
        "http://login.example",
        "http://127.0.0.1.evil.example",
        "https://user:secret@login.example",
        "https://login.example/?x=secret",
        "https://[",
        "file:///secret",
    ],
)
def test_issuer_that_others_could_play_is_refused(issuer: str) -> None:
    with pytest.raises(ValueError, match=r"must|is not") as refused:
        OidcLogin(issuer=issuer, audience=AUDIENCE)
    assert "secret" not in str(refused.value)
