"""The tools that the executor offers to the model."""

from collections.abc import Mapping, Sequence

from app.domain.models.tool import ToolkitName
from app.domain.services.tools import browser, file, message, search, shell
from app.domain.services.tools.base import Tool

TOOLKITS: dict[ToolkitName, Sequence[Tool]] = {
    "shell": shell.TOOLS,
    "file": file.TOOLS,
    "browser": browser.TOOLS,
    "search": search.TOOLS,
    "message": message.TOOLS,
}
"""Tools of each toolkit. They are always offered in this order, so that prompt caches stay valid.

A new toolkit is a new module and one line here.
"""

EXECUTING: Mapping[str, Tool] = {
    tool.spec.name: tool for tool in (*(tool for tools in TOOLKITS.values() for tool in tools), message.COMPLETE_STEP)
}
"""Tools of an executing call, by function name."""
