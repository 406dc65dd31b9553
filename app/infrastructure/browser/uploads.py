"""Files of the workspace for the file fields of pages."""

from app.domain.errors import BrowserFailure, SandboxFailure
from app.domain.external.sandbox import Sandbox
from app.infrastructure.browser.addresses import shown_path, workspace_path
from app.infrastructure.browser.channel import Channel, Json, text
from app.infrastructure.browser.failures import CONFLICT, NOT_FOUND, gone
from app.infrastructure.browser.reach import ask, world_of
from app.infrastructure.browser.tab import Tab


async def is_for_files(tab: Tab, index: int | None) -> bool:
    """Whether text for `index` is the path of a file: it is a file field, or the page asked for a file just now."""
    if index is None:
        return tab.chooser is not None
    how = await ask(world_of(tab, index), index, "wayIn")
    return text(how, "way") == "file" or (tab.chooser is not None and text(how, "way") not in ("type", "set"))


async def upload(tab: Tab, index: int | None, words: str, sandbox: Sandbox) -> None:
    """Give the files named in `words` (one a line) to the file field `index`, or to the one that the page asked for.

    Raises:
        BrowserFailure: there is no such file or no such field.
        SandboxUnavailable: the sandbox does not say whether there is.
    """
    home = sandbox.browser.home
    paths = [workspace_path(line, home) for line in words.splitlines() if line.strip()]
    if not paths:
        raise BrowserFailure("Give the path of the file.")
    for path in paths:
        await _check(sandbox, path, shown_path(path, home))
    channel, field = await _field(tab, index)
    try:
        await channel.send("DOM.setFileInputFiles", {"files": paths, **field})
    except BrowserFailure as error:
        if "multiple" in str(error).lower():
            raise BrowserFailure("This field takes one file only.", status=CONFLICT) from error
        raise
    tab.chooser = None


async def _field(tab: Tab, index: int | None) -> tuple[Channel, Json]:
    """The session and the handle of the field."""
    if index is not None:
        world = world_of(tab, index)
        how = await ask(world, index, "wayIn")
        if text(how, "way") == "file":
            handle = await world.handle("element", index)
            if not handle:
                raise gone(index)
            return world.channel, {"objectId": handle}
    if tab.chooser is None:
        raise BrowserFailure("The page does not ask for a file.", status=CONFLICT)
    channel, node = tab.chooser
    return channel, {"backendNodeId": node}


async def _check(sandbox: Sandbox, path: str, told: str) -> None:
    """Chromium takes a path that leads nowhere without a word."""
    try:
        await sandbox.file_read(path, start=0, end=1, sudo=False)
    except SandboxFailure as error:
        if error.status == NOT_FOUND or "folder" in str(error):
            raise BrowserFailure(f"There is no file {told}.", status=NOT_FOUND) from error
        # That it is no text is as good.
