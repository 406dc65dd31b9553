"""Google Custom Search: https://developers.google.com/custom-search/v1/reference/rest/v1/cse/list."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

import httpx
import orjson

from app.domain.errors import SearchFailure
from app.domain.external.search import DateRange, SearchHit
from app.infrastructure.search import MAX_HITS, make_hit

BASE_URL = "https://customsearch.googleapis.com"
SEARCH_SECONDS = 10.0
"""Maximum time of a search, in seconds."""


_DATE_RESTRICT: Mapping[DateRange, str] = {
    "past_hour": "d1",  # the shortest period that there is
    "past_day": "d1",
    "past_week": "w1",
    "past_month": "m1",
    "past_year": "y1",
}
_QUOTA_REASONS = frozenset({"dailyLimitExceeded", "quotaExceeded", "rateLimitExceeded", "userRateLimitExceeded"})
_MAX_REASON = 300
"""Maximum length of Google's own message in an error text, in characters."""

JsonObject = Mapping[str, object]


class GoogleSearch:
    """`SearchEngine` over Google Custom Search.

    The key is sent in a header, because a URL with it could appear in logs and errors.
    """

    def __init__(
        self,
        *,
        api_key: str,
        engine_id: str,
        base_url: str = BASE_URL,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Create the engine with an HTTP client of its own; tests pass a `transport`."""
        self._client = httpx.AsyncClient(transport=transport)
        self._key = api_key
        self._engine_id = engine_id
        self._url = base_url.rstrip("/") + "/customsearch/v1"

    async def search(self, query: str, date_range: DateRange) -> list[SearchHit]:
        """Return at most `MAX_HITS` hits, best first.

        Raises:
            SearchFailure: The quota is used up, the key is refused, or there is no valid response in time.
        """
        parameters = {"cx": self._engine_id, "q": query, "num": str(MAX_HITS)}
        if restriction := _DATE_RESTRICT.get(date_range):
            parameters["dateRestrict"] = restriction
        try:
            async with asyncio.timeout(SEARCH_SECONDS):
                response = await self._client.get(
                    self._url, params=parameters, headers={"X-Goog-Api-Key": self._key}, timeout=SEARCH_SECONDS
                )
        except (TimeoutError, httpx.TimeoutException):
            raise SearchFailure(f"Google did not answer within {SEARCH_SECONDS:g} s.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SearchFailure(f"Google cannot be reached ({type(error).__name__}).") from None
        except UnicodeEncodeError:
            raise SearchFailure("The query is not valid Unicode: it holds half a surrogate pair.") from None
        body = _object(response.content)
        if not response.is_success:
            raise SearchFailure(self._reason(response.status_code, body))
        return _hits(body)

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._client.aclose()

    def _reason(self, status: int, body: JsonObject | None) -> str:
        """Return the error text for the model and the operator, without the key."""
        error = _mapping((body or {}).get("error"))
        message = error.get("message")
        detail = message.replace(self._key, "***")[:_MAX_REASON] if isinstance(message, str) else ""
        if status == HTTPStatus.TOO_MANY_REQUESTS or _reasons(error) & _QUOTA_REASONS:
            return f"Google's search quota is used up for now. {detail}".rstrip()
        if status in (400, 401, 403):
            return f"Google refused the search; GOOGLE_SEARCH_API_KEY or _ENGINE_ID may be wrong. {detail}".rstrip()
        return f"Google's search failed (HTTP {status}). {detail}".rstrip()


def _reasons(error: JsonObject) -> set[str]:
    reasons = [_mapping(each).get("reason") for each in _list(error.get("errors"))]
    return {reason for reason in reasons if isinstance(reason, str)}


def _hits(body: JsonObject | None) -> list[SearchHit]:
    if body is None:
        raise SearchFailure("Google sent an invalid response.")
    # Without hits, the response has no `items`.
    items = [_mapping(item) for item in _list(body.get("items"))]
    hits = [make_hit(item.get("title"), item.get("link"), item.get("snippet")) for item in items]
    return [hit for hit in hits if hit is not None][:MAX_HITS]


def _object(content: bytes) -> JsonObject | None:
    try:
        body: object = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, object]", body) if isinstance(body, dict) else None


def _mapping(value: object) -> JsonObject:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
