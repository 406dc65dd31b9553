"""Search engines with scripted servers and libraries: every outcome is hits or a SearchFailure."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import httpx
import pytest
from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException
from primp import PrimpError

from app.domain.errors import SearchFailure
from app.domain.external.search import DateRange, SearchHit
from app.infrastructure.search import google
from app.infrastructure.search.ddgs import DdgsSearch
from app.infrastructure.search.google import GoogleSearch

KEY = "AIza-very-secret"
Handler = Callable[[httpx.Request], Any]


@asynccontextmanager
async def google_engine(handler: Handler) -> AsyncIterator[GoogleSearch]:
    """Open a `GoogleSearch` whose requests `handler` answers."""
    transport = httpx.MockTransport(handler)
    engine = GoogleSearch(api_key=KEY, engine_id="cx1", base_url="http://google.test/", transport=transport)
    yield engine
    await engine.close()


async def google_answers(status: int, body: object) -> list[SearchHit]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with google_engine(lambda _: httpx.Response(status, content=content)) as search:
        return await search.search("cats", "all")


async def test_google_request_has_the_key_only_in_a_header(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={})

    async with google_engine(handler) as search:
        assert await search.search("black cats", "past_week") == []
        for date_range in get_args(DateRange):
            await search.search("x", date_range)
    request = asked[0]
    assert dict(request.url.params) == {"cx": "cx1", "q": "black cats", "num": "10", "dateRestrict": "w1"}
    assert request.url.path == "/customsearch/v1" and request.headers["x-goog-api-key"] == KEY
    restrictions = [each.url.params.get("dateRestrict") for each in asked[1:]]
    assert restrictions == [None, "d1", "d1", "w1", "m1", "y1"]
    assert KEY not in str(request.url) and KEY not in caplog.text


async def test_google_returns_at_most_ten_hits_in_order() -> None:
    items: list[object] = [{"title": "A\n  cat", "link": "http://a", "snippet": "so\nnice"}, {"link": "http://b"}]
    items += ["junk", {"title": "no link"}, *({"title": "x", "link": f"http://{n}"} for n in range(20))]
    hits = await google_answers(200, {"items": items})
    assert hits[:2] == [
        SearchHit(title="A cat", link="http://a", snippet="so nice"),
        SearchHit(title="http://b", link="http://b", snippet=""),
    ]
    assert len(hits) == 10


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (429, {"error": {"message": "Quota exceeded"}}, "quota is used up"),
        (403, {"error": {"errors": [{"reason": "dailyLimitExceeded"}], "message": "Limit"}}, "quota is used up"),
        (403, {"error": {"errors": [{"reason": "forbidden"}], "message": "blocked"}}, "may be wrong. blocked"),
        (400, {"error": {"message": f"API key not valid: {KEY}"}}, "API key not valid: \\*\\*\\*"),
        (400, [], "may be wrong"),
        (500, b"<html>oops", "HTTP 500"),
        (302, b"", "HTTP 302"),
        (200, b"<html>", "invalid response"),
        (200, b"[]", "invalid response"),
        (429, {"error": "x"}, "quota is used up"),
        (403, {"error": {"errors": [None, {"reason": []}]}}, "may be wrong"),
    ],
)
async def test_google_error_response_raises_search_failure_without_the_key(
    status: int, body: object, words: str
) -> None:
    with pytest.raises(SearchFailure, match=words) as caught:
        await google_answers(status, body)
    assert KEY not in str(caught.value)


async def test_unreachable_google_raises_search_failure_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"no route for {request.headers}")

    async with google_engine(unreachable) as search:
        with pytest.raises(SearchFailure, match="cannot be reached") as caught:
            await search.search("cats", "all")
        assert KEY not in repr(caught.value) and caught.value.__cause__ is None
        with pytest.raises(SearchFailure, match="not valid Unicode"):
            await search.search("\ud800", "all")

    async def silent(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(google, "SEARCH_SECONDS", 0.02)
    async with google_engine(silent) as search:
        with pytest.raises(SearchFailure, match="did not answer"):
            await search.search("cats", "all")


async def test_ddgs_search_passes_time_limit_and_returns_hits() -> None:
    limits: list[str | None] = []

    def ask(query: str, limit: str | None) -> list[dict[str, object]]:
        limits.append(limit)
        assert threading.current_thread() is not threading.main_thread()
        return [{"title": "A\ncat", "href": "http://a", "body": "so  nice"}, {"title": "none"}, {"href": "http://b"}]

    search = DdgsSearch(ask)
    hits = [await search.search("cats", date_range) for date_range in get_args(DateRange)]
    await search.close()
    assert limits == [None, "d", "d", "w", "m", "y"]
    assert hits[0] == [
        SearchHit(title="A cat", link="http://a", snippet="so nice"),
        SearchHit(title="http://b", link="http://b", snippet=""),
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RatelimitException("202"), "try again in a minute"),
        (TimeoutException("timed out"), "in time"),
        (DDGSException("ConnectError: http://secret-proxy"), "cannot be reached, or refused"),
        (PrimpError("bad proxy"), "The search failed"),
        (OSError("no route"), "The search failed"),
    ],
)
async def test_ddgs_exception_raises_search_failure(error: Exception, words: str) -> None:
    def ask(query: str, limit: str | None) -> list[dict[str, object]]:
        raise error

    search = DdgsSearch(ask)
    with pytest.raises(SearchFailure, match=words) as caught:
        await search.search("cats", "all")
    await search.close()
    assert "secret-proxy" not in str(caught.value)


async def test_no_results_returns_empty_list() -> None:
    def ask(query: str, limit: str | None) -> list[dict[str, object]]:
        raise DDGSException("No results found.")

    search = DdgsSearch(ask)
    assert await search.search("qwxzy", "past_day") == []
    with pytest.raises(SearchFailure, match="empty"):
        await search.search("  ", "all")
    await search.close()


async def test_hanging_search_times_out_without_blocking_others() -> None:
    released = threading.Event()

    def ask(query: str, limit: str | None) -> list[dict[str, object]]:
        released.wait(20)
        return []

    search = DdgsSearch(ask, seconds=0.05)
    outcomes = await asyncio.gather(*(search.search("cats", "all") for _ in range(8)), return_exceptions=True)
    assert all(isinstance(each, SearchFailure) and "longer than 0.05 s" in str(each) for each in outcomes)
    await search.close()
    released.set()


async def test_ddgs_library_accepts_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    import ddgs.ddgs
    from ddgs.results import TextResult

    class Engine:
        name = provider = "scripted"
        priority = 1

        def __init__(self, **options: object) -> None:
            assert options["timeout"]

        def search(self, query: str, **options: object) -> list[object]:
            assert (query, options["timelimit"]) == ("cats", "w")
            return [TextResult(title="A cat", href="http://a.example/", body="nice")]

    monkeypatch.setattr(ddgs.ddgs, "ENGINES", {"text": {"scripted": Engine}})
    search = DdgsSearch()
    hits = await search.search("cats", "past_week")
    await search.close()
    assert [hit.link for hit in hits] == ["http://a.example/"]
