"""Every tool that the executor offers, in the one order in which it is always offered (prompt caches rest on it)."""

from collections.abc import Mapping

from app.domain.services.tools import browser, file, message, search, shell
from app.domain.services.tools.base import Tool

EXECUTING: Mapping[str, Tool] = {
    tool.spec.name: tool
    for tool in (*shell.TOOLS, *file.TOOLS, *browser.TOOLS, *search.TOOLS, *message.TOOLS, message.COMPLETE_STEP)
}
"""The tools of an executing call by name. A new toolkit is a new module and one more name here."""
