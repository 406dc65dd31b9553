"""Port: web search."""

from dataclasses import dataclass
from typing import Literal, Protocol

DateRange = Literal["all", "past_hour", "past_day", "past_week", "past_month", "past_year"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One result."""

    title: str
    link: str
    snippet: str


class SearchEngine(Protocol):
    """A web search engine."""

    async def search(self, query: str, date_range: DateRange) -> list[SearchHit]:
        """At most ten hits, best first.

        Raises:
            SearchFailure: quota, time-out, refusal.
        """
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
