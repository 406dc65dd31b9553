"""Port: web search."""

from dataclasses import dataclass
from typing import Literal, Protocol

DateRange = Literal["all", "past_hour", "past_day", "past_week", "past_month", "past_year"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """A search result."""

    title: str
    link: str
    snippet: str


class SearchEngine(Protocol):
    """A web search engine."""

    async def search(self, query: str, date_range: DateRange) -> list[SearchHit]:
        """Return at most ten results, the best first.

        Raises:
            SearchFailure: The engine refused, failed or timed out, or its quota is used up.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
