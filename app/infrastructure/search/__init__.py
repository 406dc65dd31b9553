"""Web search engines."""

from app.domain.external.search import SearchHit

MAX_HITS = 10
"""Maximum number of hits of a search."""


def make_hit(title: object, link: object, snippet: object) -> SearchHit | None:
    """Return a hit with each text on one line, or None without a link. The values may have any type."""
    if not isinstance(link, str) or not link:
        return None
    return SearchHit(title=_one_line(title) or link, link=link, snippet=_one_line(snippet))


def _one_line(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
