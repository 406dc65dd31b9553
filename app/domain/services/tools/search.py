"""The search toolkit: search the web with the configured engine."""

from pydantic import Field

from app.domain.external.search import DateRange
from app.domain.models.tool import ToolResult
from app.domain.services.tools.base import Tool, ToolContext, ToolInput, function_tool


class _Query(ToolInput):
    query: str = Field(min_length=1, max_length=400, description="A few keywords")
    date_range: DateRange = "all"


async def _web(args: _Query, context: ToolContext) -> ToolResult:
    hits = await context.shared.engine.search(args.query, args.date_range)
    results = [{"title": hit.title, "link": hit.link, "snippet": hit.snippet} for hit in hits]
    text = "\n\n".join(f"{hit.title}\n{hit.link}\n{hit.snippet}" for hit in hits)
    return ToolResult(
        text=text or "[no results]",
        message=f"{len(hits)} results",
        data={"query": args.query, "results": results},
        content={"results": results},
    )


TOOLS: tuple[Tool, ...] = (function_tool("info_search_web", "search", "Search the web.", _Query, _web, parallel=True),)
