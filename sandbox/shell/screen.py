"""A terminal screen that keeps lines that scrolled off and knows which lines were wrapped."""

import pyte
from pyte.screens import Char

from sandbox.shell.bash import COLUMNS, ROWS

_WRAPPED = -1
"""A column that no terminal has. It marks a line that continues on the next one."""


class _Screen(pyte.Screen):
    def __init__(self) -> None:
        self.gone: list[dict[int, Char]] = []
        self._drawing = False
        super().__init__(COLUMNS, ROWS)

    def draw(self, data: str) -> None:
        self._drawing = True
        try:
            super().draw(data)
        finally:
            self._drawing = False

    def linefeed(self) -> None:
        line = self.buffer[self.cursor.y]
        if self._drawing:
            line[_WRAPPED] = self.default_char
        else:
            line.pop(_WRAPPED, None)
            # The terminal does not add a carriage return to a newline, but programs expect one.
            self.carriage_return()
        super().linefeed()

    def index(self) -> None:
        top, bottom = self.margins or (0, self.lines - 1)
        if self.cursor.y == bottom and top == 0:
            self.gone.append(self.buffer[0])
        super().index()


def _line_text(line: dict[int, Char]) -> str:
    width = max(line, default=-1) + 1
    # The second cell of a wide character is an empty string.
    return "".join(line[column].data if column in line else " " for column in range(width))


def screen_text(text: str) -> str:
    """Return the lines that a terminal shows after `text`, including scrolled ones. `text` must suit pyte."""
    screen = _Screen()
    pyte.Stream(screen).feed(text)
    lines: list[dict[int, Char]] = [*screen.gone, *(screen.buffer[row] for row in range(screen.lines))]
    parts: list[str] = []
    for line in lines:
        wrapped = _WRAPPED in line
        shown = _line_text(line)
        parts.append(shown if wrapped else shown.rstrip(" ") + "\n")
    return "".join(parts).rstrip("\n")
