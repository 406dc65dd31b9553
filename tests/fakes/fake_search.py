"""A search engine that finds what a test put into it."""

from app.domain.errors import SearchFailure
from app.domain.external.search import DateRange, SearchHit


class FakeSearch:
    """`SearchEngine` that answers `hits` to every query, or fails with `failure`; `queries` records what was asked."""

    def __init__(self, hits: list[SearchHit] | None = None, *, failure: str = "") -> None:
        self.hits = hits or []
        self.failure = failure
        self.queries: list[tuple[str, DateRange]] = []
        self.closed = False

    async def search(self, query: str, date_range: DateRange) -> list[SearchHit]:
        self.queries.append((query, date_range))
        if self.failure:
            raise SearchFailure(self.failure)
        return list(self.hits)[:10]

    async def close(self) -> None:
        self.closed = True
