"""Limits on requests and uploaded bytes of each owner, and on failed logins of each client address."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from math import ceil

from app.domain.errors import LimitReached
from app.domain.external.limits import RateCounter
from app.domain.models.limits import SECONDS_PER_DAY, Rate, RateLimits

WINDOW_SECONDS = 5
"""Window in which requests are counted, in seconds: an owner may send those of the whole window at once."""

MAX_CREDENTIALS = 10_000
"""Maximum number of accepted credentials to remember."""

MAX_ADDRESSES = 10_000
"""Maximum number of blocked client addresses to remember."""


class RateService:
    """Checks the limits of requests.

    A client address with too many failed logins is blocked until its window ends. From there, only credentials that
    were accepted lately are looked at: a guess is refused unseen, but a person behind the same proxy goes on working.
    """

    def __init__(self, limits: RateLimits, counter: RateCounter, *, now: Callable[[], float] = time.monotonic) -> None:
        """Create the service.

        Args:
            limits: The limits.
            counter: Counts requests, bytes and failures.
            now: A clock in seconds.
        """
        self._counter = counter
        self._now = now
        self._per_second = limits.requests_per_second
        self._requests = Rate(name="requests", amount=self._per_second * WINDOW_SECONDS, seconds=WINDOW_SECONDS)
        self._uploads = Rate(name="uploads", amount=limits.upload_bytes_per_day, seconds=SECONDS_PER_DAY)
        self._failures = Rate(name="logins", amount=limits.login_failures_per_minute, seconds=60)
        self._blocked_until: OrderedDict[str, float] = OrderedDict()
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        self._digest_key = secrets.token_bytes(32)

    async def check_request(self, owner: str) -> None:
        """Count a request of the owner.

        Raises:
            LimitReached: The owner sends too many.
        """
        if self._per_second and (wait := await self._counter.hit(self._requests, owner)):
            text = f"too many requests: {self._per_second} per second (LIMIT_REQUESTS_PER_SECOND)"
            raise _refusal(f"{text}, counted over {WINDOW_SECONDS} s", "requests", wait)

    async def check_upload(self, owner: str, size: int) -> None:
        """Count `size` bytes that the owner uploads.

        Raises:
            LimitReached: The owner has uploaded too much today. Nothing is counted.
        """
        limit = self._uploads.amount
        if limit and size and (wait := await self._counter.hit(self._uploads, owner, size)):
            raise _refusal(f"too many bytes uploaded: {limit} in a day (LIMIT_UPLOAD_BYTES_PER_DAY)", "uploads", wait)

    def check_address(self, address: str, credential: bytes) -> None:
        """Check that the client address may try to log in with `credential`.

        Raises:
            LimitReached: It failed too often, and the credential was not accepted before.
        """
        if not self._blocked_until:
            return
        wait = self._blocked_until.get(_network(address), 0.0) - self._now()
        if wait > 0 and self._digest(credential) not in self._accepted:
            raise self._login_refusal(wait)

    async def count_failure(self, address: str) -> None:
        """Count a failed login of the client address.

        Raises:
            LimitReached: It failed too often, and is blocked from now on.
        """
        if not self._failures.amount:
            return
        network = _network(address)
        if wait := await self._counter.hit(self._failures, network):
            self._blocked_until[network] = self._now() + wait
            _bound(self._blocked_until, MAX_ADDRESSES)
            raise self._login_refusal(wait)

    def remember_accepted(self, credential: bytes) -> None:
        """Remember that `credential` was accepted. Only a digest of it is kept."""
        if self._failures.amount:
            digest = self._digest(credential)
            self._accepted[digest] = None
            self._accepted.move_to_end(digest)
            _bound(self._accepted, MAX_CREDENTIALS)

    def _digest(self, credential: bytes) -> bytes:
        return blake2b(credential, key=self._digest_key, digest_size=16).digest()

    def _login_refusal(self, wait: float) -> LimitReached:
        limit = self._failures.amount
        return _refusal(f"too many failed logins: {limit} per minute (LIMIT_LOGIN_FAILURES_PER_MINUTE)", "logins", wait)


def _refusal(text: str, limit: str, wait: float) -> LimitReached:
    seconds = max(1, ceil(wait))
    return LimitReached(f"{text}; try again in {seconds} s", limit=limit, retry_after=seconds)


def _bound(entries: "OrderedDict[str, float] | OrderedDict[bytes, None]", size: int) -> None:
    while len(entries) > size:
        entries.popitem(last=False)


def _network(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network that an IPv6 address belongs to."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
