"""Rendering of terminal output as the text that a person would see."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DROPPED = re.compile(r"[\x00-\x07\x10-\x1a\x1c-\x1f\x7f-\x9f]")
_SEQUENCE = re.compile(
    r"\x1b(?:"
    r"\[(?P<parameters>[0-?]*)[ -/]*(?P<final>[@-~])"
    r"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # titles and links; one without an end must not swallow the next lines
    r"|[PX^_][^\x1b\n]*(?:\x1b\\)?"
    r"|\[[0-?]*[ -/]*"  # a sequence that was cut off
    r"|[ -/]+[0-~]?"
    r"|(?P<single>[0-~])"
    r"|)"
)
_MOVES = frozenset("ABEFHfdJLMPXS@rT")
"""Final characters of sequences that move across the screen. C, D, G and K stay within their line."""
_IN_LINE = frozenset("CDGK")
_BIG = re.compile(r"\d{5,}")
_SINGLES = {"7": "\x1b7", "8": "\x1b8", "M": "\x1bM", "D": "\n", "E": "\n", "c": "\x1b[H\x1b[2J"}
_ALTERNATE = {"?1049", "?1047", "?47"}
# Shift-out and shift-in are removed from the input and then mark a full-screen program internally.
_ENTER, _LEAVE = "\x0e", "\x0f"
_FULL_SCREEN = re.compile(f"{_ENTER}[^{_LEAVE}]*{_LEAVE}")
_LINE_TOKEN = re.compile(r"\x1b\[(\d*)([CDGK])|([\r\x08])|([^\x1b\r\x08]+)")
_MOST_COLUMNS = 1000


def render(data: bytes) -> str:
    """Return `data` as text without escape sequences and control characters other than newline and tab."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    if not _CONTROL.search(text):
        return text
    # Sequences first: a title may end with a bell, which is dropped on its own.
    text = _SEQUENCE.sub(_simplify, text.replace(_ENTER, "").replace(_LEAVE, ""))
    text = re.sub(r"\r+\n", "\n", _DROPPED.sub("", text)).replace("\x0b", "\n").replace("\x0c", "\n")
    text = _FULL_SCREEN.sub("", text).replace(_LEAVE, "")
    before, entered, inside = text.partition(_ENTER)
    if not entered:
        return _resolve(text)
    inside = inside.replace(_ENTER, "")
    return f"{_resolve(before)}\n{_resolve(inside)}" if before else _resolve(inside)


def unfinished(data: bytes) -> int:
    """Return how many bytes at the end belong to an incomplete character or sequence."""
    escape = data.rfind(b"\x1b", max(0, len(data) - 64))
    if escape >= 0:
        tail = data[escape:].decode("utf-8", "replace")
        found = _SEQUENCE.match(tail)
        if found and found.end() == len(tail) and not found["final"] and not found["single"]:
            ended = tail.endswith("\x07") or (len(tail) > 2 and tail.endswith("\x1b\\"))
            return 0 if ended else len(data) - escape
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed else 0
        if byte < 0x80:
            break
    return 0


def _simplify(found: re.Match[str]) -> str:
    """Keep sequences that move the cursor or erase, in their plainest form. Drop colors, titles and modes."""
    final, parameters = found["final"], found["parameters"] or ""
    if final is None:
        return _SINGLES.get(found["single"] or "", "")
    if final in "hl" and parameters in _ALTERNATE:
        return _ENTER if final == "h" else _LEAVE
    if (final not in _MOVES and final not in _IN_LINE) or not re.fullmatch(r"[\d;]*", parameters):
        return ""
    if final in _IN_LINE:
        parameters = parameters.partition(";")[0]
    return f"\x1b[{_BIG.sub('9999', parameters)}{final}"


def _resolve(text: str) -> str:
    if re.search(r"\x1b(?:\[[\d;]*[^\d;CDGK]|[78M])", text):
        # Imported only if needed: most commands do not move across the screen.
        from sandbox.shell.screen import screen_text

        shown = _CONTROL.sub("", screen_text(text))
        return f"{shown}\n" if text.endswith("\n") and shown else shown
    if "\x1b" not in text and "\r" not in text and "\x08" not in text:
        return text
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    """Return one line after its carriage returns, backspaces and moves."""
    if not _CONTROL.search(line):
        return line
    cells: list[str] = []
    column = 0
    for number, final, control, run in _LINE_TOKEN.findall(line):
        if run:
            cells.extend(" " * (column - len(cells)))
            cells[column : column + len(run)] = run
            column += len(run)
        elif control:
            column = 0 if control == "\r" else max(0, column - 1)
        elif final == "K":
            _erase(cells, column, number)
        else:
            column = _moved(column, final, int(number or 0))
    return "".join(cells)


def _erase(cells: list[str], column: int, how: str) -> None:
    if how in ("", "0"):
        del cells[column:]
    elif how == "1":
        end = min(column + 1, len(cells))
        cells[:end] = " " * end
    else:
        cells.clear()


def _moved(column: int, final: str, number: int) -> int:
    if final == "G":
        column = max(number, 1) - 1
    else:
        column += max(number, 1) * (1 if final == "C" else -1)
    return min(max(column, 0), _MOST_COLUMNS)
