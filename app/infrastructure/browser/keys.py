"""Keys as a model writes them, as Playwright knows them; and those that mean something to a browser's window."""

from collections.abc import Mapping
from typing import Literal

BrowserKey = Literal["back", "forward", "reload", "close", "next", "previous", "new"]
"""What some keys do in a browser's window. Keys over CDP reach the page only, so that these are done for it."""

_ALIASES: Mapping[str, str] = {
    "ctrl": "Control",
    "control": "Control",
    "alt": "Alt",
    "option": "Alt",
    "shift": "Shift",
    "meta": "Meta",
    "cmd": "Meta",
    "command": "Meta",
    "super": "Meta",
    "win": "Meta",
    "enter": "Enter",
    "return": "Enter",
    "esc": "Escape",
    "escape": "Escape",
    "tab": "Tab",
    "space": " ",
    "spacebar": " ",
    "backspace": "Backspace",
    "del": "Delete",
    "delete": "Delete",
    "ins": "Insert",
    "insert": "Insert",
    "home": "Home",
    "end": "End",
    "pageup": "PageUp",
    "page_up": "PageUp",
    "pgup": "PageUp",
    "pagedown": "PageDown",
    "page_down": "PageDown",
    "pgdn": "PageDown",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "arrowup": "ArrowUp",
    "arrowdown": "ArrowDown",
    "arrowleft": "ArrowLeft",
    "arrowright": "ArrowRight",
    "plus": "+",
}
_MODIFIERS = ("Control", "Alt", "Shift", "Meta")
_WINDOW_KEYS: Mapping[str, BrowserKey] = {
    "Alt+ArrowLeft": "back",
    "Alt+ArrowRight": "forward",
    "F5": "reload",
    "Control+F5": "reload",
    "Control+r": "reload",
    "Control+Shift+r": "reload",
    "Control+w": "close",
    "Control+F4": "close",
    "Control+Tab": "next",
    "Control+Shift+Tab": "previous",
    "Control+t": "new",
}


def parse_keys(key: str) -> str:
    """`key` as Playwright writes it: `ctrl + A` becomes `Control+A`."""
    if len(key) == 1:
        return key
    ends_with_plus = key.rstrip().endswith("++") or key.strip() == "+"
    parts = [part.strip() for part in key.strip().rstrip("+" if ends_with_plus else "").split("+")]
    parts = [_named(part) for part in parts if part]
    if ends_with_plus:
        parts.append("+")
    modifiers = [each for each in _MODIFIERS if each in parts[:-1]]
    others = [each for each in parts[:-1] if each not in _MODIFIERS]
    return "+".join([*modifiers, *others, *parts[-1:]])


def window_key(keys: str) -> BrowserKey | None:
    """What parsed `keys` do in a browser's window, if anything."""
    head, plus, last = keys.rpartition("+")
    return _WINDOW_KEYS.get(f"{head}{plus}{last.lower()}" if len(last) == 1 else keys)


def _named(part: str) -> str:
    known = _ALIASES.get(part.lower())
    if known is not None:
        return known
    return part.upper() if len(part) in (2, 3) and part[0] in "fF" and part[1:].isdigit() else part
