"""Search without keys: the metasearch library `ddgs`."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from app.domain.errors import SearchFailure
from app.domain.external.search import DateRange, SearchHit

SEARCH_SECONDS = 15.0
"""For the whole search, the wait for a free thread included."""
ENGINE_SECONDS = 6
"""For each engine that the library asks."""
THREADS = 4
MOST_HITS = 10

_TIME_LIMIT: Mapping[DateRange, str] = {
    "past_hour": "d",  # a day is the shortest there is
    "past_day": "d",
    "past_week": "w",
    "past_month": "m",
    "past_year": "y",
}
_NOTHING_FOUND = "No results found."
"""What the library raises instead of an empty list."""

Rows = Sequence[Mapping[str, object]]
Ask = Callable[[str, str | None], Rows]
"""(query, time limit) → rows of `title`, `href`, `body`. Blocks."""


class DdgsSearch:
    """`SearchEngine` over several public engines, whichever answers. Owns its threads; close it.

    Threads of its own: the library cannot be interrupted, and must not fill up those that others wait for.
    """

    def __init__(self, ask: Ask | None = None, *, seconds: float = SEARCH_SECONDS) -> None:
        """`ask` replaces the library in tests; it may raise what the library raises."""
        self._ask = ask or _ask_ddgs
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="search")

    async def search(self, query: str, date_range: DateRange) -> list[SearchHit]:
        """At most ten hits, best first; none found is an empty list.

        Raises:
            SearchFailure: every engine refused, failed or was too slow.
        """
        if not query.strip():
            raise SearchFailure("The query is empty.")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                rows = await loop.run_in_executor(
                    self._threads, _translated, self._ask, query, _TIME_LIMIT.get(date_range)
                )
        except TimeoutError:
            raise SearchFailure(f"The search took longer than {self._seconds:g} s.") from None
        hits = [_hit(row) for row in rows]
        return [hit for hit in hits if hit is not None][:MOST_HITS]

    async def close(self) -> None:
        """Give up the threads; a search that is under way ends by its own time limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _ask_ddgs(query: str, time_limit: str | None) -> Rows:
    from ddgs.ddgs import DDGS

    return DDGS(timeout=ENGINE_SECONDS).text(query, timelimit=time_limit, max_results=MOST_HITS)


def _translated(ask: Ask, query: str, time_limit: str | None) -> Rows:
    """Ask, in this thread, with the library's exceptions told in words."""
    try:
        # Here and not above: it takes a third of a second and 20 MB, which a service that never searches saves.
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


def _hit(row: Mapping[str, object]) -> SearchHit | None:
    link = row.get("href")
    if not isinstance(link, str) or not link:
        return None
    return SearchHit(title=_line(row.get("title")) or link, link=link, snippet=_line(row.get("body")))


def _line(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
