"""Text in editors (rich text, code): insert it as a person would, and verify that it arrived whole.

An editor keeps its text in a model of its own and understands only some of the ways in which a browser inserts text.
So the text is read back after each attempt, and the next attempt replaces whatever the previous one left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp
from app.infrastructure.browser.frames import IsolatedWorld
from app.infrastructure.browser.tab import Tab

MAX_TYPED_CHARS = 100
"""Maximum length of a text that is typed key by key."""
TYPE_SECONDS = 10.0
"""Time limit in seconds for inserting a text."""
QUIET_MS = 50
"""Time in milliseconds without a change after which an editor has taken a text."""
MAX_UNQUIET_MS = 500
"""Maximum time in milliseconds to wait for that."""
SLOW_MS = 300
"""Time in milliseconds without a change to wait for before an insertion counts as failed."""
MAX_SLOW_MS = 1500
"""Maximum time in milliseconds to wait for that."""
SELECTION_MS = 130
"""Time in milliseconds after which an editor knows what is selected: some look at most every 100 ms."""
MAX_EXCERPT = 80
"""Maximum length of a line in the note about a text that differs."""

_IGNORED = str.maketrans({"\u00a0": " ", "\u200b": None, "\ufeff": None, "\u2060": None, "\r": None})
"""Characters that editors add to what they show, and what they stand for."""


@dataclass(frozen=True, slots=True)
class Editor:
    """An editor of a page: its number (None: the one that has the focus), its document, and whether it is for code."""

    tab: Tab
    world: IsolatedWorld
    index: int | None
    is_code: bool

    async def replace(self, text: str) -> None:
        """Replace the editor's text. A note tells the model if the editor shows another text afterwards.

        Raises:
            BrowserFailure: The editor does not take the text.
        """
        text = _with_newlines(text)
        before = shown = await self._shown()
        if not await self._can_select(before):
            await self.tab.lifetime.run(self.tab.page.keyboard.press("End"))
            await self.insert(text)
            self.tab.note(f"{self._name} does not let its text be selected: nothing was replaced, only inserted.")
            return
        for insertion in self._insertions(text):
            await self._select_all()
            await self.world.call("waitForQuiet", SELECTION_MS, SELECTION_MS)
            if not await self._insert(insertion, text):
                continue
            shown = await self._read_until(text)
            if self._is_same(shown, text):
                return
            if "\n" in text and (await self.world.call("isAround", self.index, text)).get("isAround") is True:
                self.tab.note(f"{self._name} split the text into several fields; their earlier text is still there.")
                return
        if self._is_same(shown, before):
            raise BrowserFailure(f"{self._name} did not take the text: it is unchanged.", status=cdp.CONFLICT)
        self.tab.note(f"{self._name} shows another text than was given: {difference(text, shown)}")

    async def insert(self, text: str) -> None:
        """Insert a text at the caret.

        Raises:
            BrowserFailure: The editor does not take the text.
        """
        text = _with_newlines(text)
        before = await self._shown()
        for insertion in self._insertions(text):
            if not await self._insert(insertion, text):
                continue
            await self.world.call("waitForQuiet", QUIET_MS, MAX_UNQUIET_MS)
            if await self._shown() != before:
                return
        if text:
            raise BrowserFailure(f"{self._name} did not take the text: it is unchanged.", status=cdp.CONFLICT)

    @property
    def _name(self) -> str:
        return "The editor" if self.index is None else f"[{self.index}]"

    def _insertions(self, text: str) -> Sequence[str]:
        """Return the ways to insert a text, in the order in which to try them."""
        if not text:
            return ("delete",)
        is_short = len(text) <= MAX_TYPED_CHARS and text.isprintable()
        first = ("keys",) if is_short and not self.is_code else ()
        return (*first, "paste", "commands", "text")

    async def _insert(self, insertion: str, text: str) -> bool:
        """Insert a text in one of the ways. Return False if that way does not suit the editor."""
        keyboard, lifetime = self.tab.page.keyboard, self.tab.lifetime
        match insertion:
            case "delete":
                await lifetime.run(keyboard.press("Delete"))
            case "keys":
                await lifetime.run(keyboard.type(text), seconds=TYPE_SECONDS)
            case "text":
                await lifetime.run(keyboard.insert_text(text), seconds=TYPE_SECONDS)
            case _:
                return (await self.world.call("insertIntoEditor", insertion, text)).get("isDone") is True
        return True

    async def _can_select(self, shown: str) -> bool:
        """Return whether Control+A selects the text. A terminal, for example, takes it for a character."""
        if not self.is_code or not shown.strip():
            return True
        await self._select_all()
        return (await self.world.call("isSelected", self.index)).get("isSelected") is True

    async def _select_all(self) -> None:
        await self.world.call("focusEditor", self.index)
        await self.tab.lifetime.run(self.tab.page.keyboard.press("Control+a"))
        await self.world.call("selectEditor", self.index)

    async def _read(self) -> str:
        """Return the editor's text once it no longer changes. The caret is at its end afterwards."""
        await self.world.call("waitForQuiet", QUIET_MS, MAX_UNQUIET_MS)
        if not self.is_code:
            return await self._shown()
        await self._select_all()
        text = cdp.text(await self.world.call("editorText", self.index, True), "text")
        await self.tab.lifetime.run(self.tab.page.keyboard.press("ArrowRight"))
        return text

    async def _read_until(self, text: str) -> str:
        """Return the editor's text, once it is `text` or does not become it."""
        shown = await self._read()
        if self._is_same(shown, text):
            return shown
        # A second insertion into an editor that is still drawing the first one would break it.
        await self.world.call("waitForQuiet", SLOW_MS, MAX_SLOW_MS)
        return await self._read()

    async def _shown(self) -> str:
        return cdp.text(await self.world.call("editorText", self.index, False), "text")

    def _is_same(self, shown: str, text: str) -> bool:
        return comparable_lines(shown, exact=self.is_code) == comparable_lines(text, exact=self.is_code)


def _with_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def comparable_lines(text: str, *, exact: bool) -> list[str]:
    """Return the lines of a text to compare. Only in code (`exact`), spaces and blank lines count."""
    lines = text.translate(_IGNORED).split("\n")
    if not exact:
        return [" ".join(line.split()) for line in lines if line.strip()]
    lines = [line.rstrip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def difference(text: str, shown: str) -> str:
    """Describe the first line in which two texts differ."""
    given, found = comparable_lines(text, exact=False), comparable_lines(shown, exact=False)
    for number, line in enumerate(given):
        other = found[number] if number < len(found) else ""
        if line != other:
            return f"line {number + 1} is {other[:MAX_EXCERPT]!r} instead of {line[:MAX_EXCERPT]!r}."
    if len(found) > len(given):
        return f"after the text there is {found[len(given)][:MAX_EXCERPT]!r}."
    return "its spaces or blank lines differ."
