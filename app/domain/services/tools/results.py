"""Results of tools that are too long for the model: it reads both ends, and the whole is in a file of the sandbox."""

import logging
from dataclasses import replace
from hashlib import sha256

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.models.tool import SavedText, ToolResult
from app.domain.services.tools.base import ToolContext, clip

log = logging.getLogger(__name__)

RESULTS_FOLDER = "~/.anker/results"
"""Folder in the sandbox for whole results."""

_TOLERANCE = 1.03
"""A text that exceeds the limit by less is not shortened, so that what a sandbox has shortened is not cut twice."""


async def fit_result(result: ToolResult, limit: int, function: str, context: ToolContext) -> ToolResult:
    """Return the result with a text of about `limit` characters, and in `saved` the file with the whole text.

    Args:
        result: The result with its whole text.
        limit: Maximum number of characters.
        function: Name of the function, for the name of the file.
        context: Resources of the run. A text that is in no file yet is written to the sandbox.
    """
    if len(result.text) <= limit * _TOLERANCE:
        return result
    saved = result.saved or await _save(result.text, function, context)
    return replace(result, text=_ends(result.text, limit, saved), saved=saved)


async def _save(text: str, function: str, context: ToolContext) -> SavedText | None:
    """Write the text to a file named after its content: the same result has the same text, also for the model."""
    name = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    file = f"{RESULTS_FOLDER}/{function}-{name}.txt"
    try:
        await (await context.sandbox()).file_write(file, text, append=False, sudo=False)
    except (SandboxFailure, SandboxUnavailable) as error:
        log.warning("a long result could not be written to a file", extra={"error": str(error)})
        return None
    return SavedText(file=file)


def _ends(text: str, limit: int, saved: SavedText | None) -> str:
    """Return both ends of the text, with a note between them that says where the rest is."""
    if saved is None:
        return clip(text, limit)
    head, tail = text[: limit * 2 // 3], text[-(limit // 3) :]
    omitted = len(text) - len(head) - len(tail)
    if saved.first_line is None:
        where = f"the whole is in {saved.file}: read parts of it with file_read, or search it"
    else:
        first = saved.first_line + head.count("\n")
        last = saved.first_line + text.count("\n") - tail.count("\n")
        if first == last or saved.first_char:
            start, end = saved.first_char + len(head), saved.first_char + len(text) - len(tail)
            where = (
                f"they are in {saved.file}: read it with file_read, start_line {saved.first_line}, "
                f"from start_char {start} to end_char {end}, or search it"
            )
        else:
            where = (
                f"they are in {saved.file}: read it with file_read from start_line {first} to end_line {last + 1}, "
                "or search it"
            )
    return f"{head}\n[... {omitted:,} of {len(text):,} characters left out; {where} ...]\n{tail}"
