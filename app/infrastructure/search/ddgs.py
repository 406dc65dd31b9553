"""Web search without a key, through the library `ddgs`."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from app.domain.errors import SearchFailure
from app.domain.external.search import DateRange, SearchHit
from app.infrastructure.search import MAX_HITS, make_hit

SEARCH_SECONDS = 15.0
"""Maximum time of a search, including the wait for a free thread, in seconds."""

ENGINE_SECONDS = 6
"""Maximum time of a request to one of the engines that the library uses, in seconds."""

THREADS = 4
"""Maximum number of searches at the same time."""

_TIME_LIMIT: Mapping[DateRange, str] = {
    "past_hour": "d",  # the shortest period that there is
    "past_day": "d",
    "past_week": "w",
    "past_month": "m",
    "past_year": "y",
}
_NOTHING_FOUND = "No results found."
"""Message of the exception that the library raises instead of returning an empty list."""

Rows = Sequence[Mapping[str, object]]
Ask = Callable[[str, str | None], Rows]
"""Blocking function that returns rows of `title`, `href` and `body` for a query and a time limit."""


class DdgsSearch:
    """`SearchEngine` that asks several public engines and returns what the first of them finds.

    It has threads of its own, because the library cannot be interrupted, and must not occupy the shared threads.
    """

    def __init__(self, ask: Ask | None = None, *, seconds: float = SEARCH_SECONDS) -> None:
        """Create the engine; tests pass an `ask` that replaces the library and may raise its exceptions."""
        self._ask = ask or _ask_ddgs
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="search")

    async def search(self, query: str, date_range: DateRange) -> list[SearchHit]:
        """Return at most `MAX_HITS` hits, best first.

        Raises:
            SearchFailure: Every engine refused the search, failed, or was too slow.
        """
        if not query.strip():
            raise SearchFailure("The query is empty.")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                rows = await loop.run_in_executor(self._threads, _search, self._ask, query, _TIME_LIMIT.get(date_range))
        except TimeoutError:
            raise SearchFailure(f"The search took longer than {self._seconds:g} s.") from None
        hits = [make_hit(row.get("title"), row.get("href"), row.get("body")) for row in rows]
        return [hit for hit in hits if hit is not None][:MAX_HITS]

    async def close(self) -> None:
        """Release the threads. A search that is still running ends when its time is up."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _ask_ddgs(query: str, time_limit: str | None) -> Rows:
    from ddgs.ddgs import DDGS

    return DDGS(timeout=ENGINE_SECONDS).text(query, timelimit=time_limit, max_results=MAX_HITS)


def _search(ask: Ask, query: str, time_limit: str | None) -> Rows:
    """Search in this thread. Translate the library's exceptions."""
    try:
        # Imported late: it takes 0.3 s and 20 MB, which a service that never searches does not need.
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException
        from primp import PrimpError
    except ImportError:
        raise SearchFailure("No search engine is installed (the package ddgs is missing).") from None
    try:
        return ask(query, time_limit)
    except RatelimitException:
        raise SearchFailure("The search engines refuse more searches for now; try again in a minute.") from None
    except TimeoutException:
        raise SearchFailure("The search engines did not answer in time.") from None
    except DDGSException as error:
        if str(error) == _NOTHING_FOUND:
            return ()
        raise SearchFailure("The search engines cannot be reached, or refused.") from error
    except (PrimpError, OSError, ValueError) as error:
        raise SearchFailure("The search failed.") from error
