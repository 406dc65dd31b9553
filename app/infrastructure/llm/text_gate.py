"""The text of a reply while it arrives: what may be thinking or markup of calls is held back."""

import re
from collections.abc import Callable

from app.infrastructure.llm.reply_text import LOOKS_LIKE_CALL, SOLUTION_TOKENS, THINK_OPEN, TOKEN, close_of, close_tag

_PARTIAL = re.compile(
    r"(?:^[ \t]*[`~{\[]*|`+|<[^<>\s]{0,60}|<(?:[^\s<>]*[:|\uff5c])?(?:function|invoke)\s[^<>\n]{0,100}|\[/?[A-Z_]{0,13}"
    r"|\u25c1[^\s\u25b7]{0,8}|\bf[unctols]{0,8}"
    r"|^A[ction]{0,5}|^Action:[^\n]{0,60}(?:\n+[ \t]*[Action Input]{0,12})?)\Z",
    re.MULTILINE,
)
"""Matches the end of a text that may be the beginning of a token."""

_OPENED = re.compile(THINK_OPEN, re.IGNORECASE)
_MAX_HELD = 2_000
"""Maximum number of characters to hold back until it is known what they are."""

_CALL_WIDTH = 80
"""Number of characters after the start of a call that tell it from prose."""


class TextGate:
    """Passes on the pieces of a text as soon as they cannot be a part of thinking or markup.

    What it holds back is decided when the reply is complete, with all of the text.
    """

    def __init__(self, emit: Callable[[str], None], *, has_tools: bool, is_thinking: bool) -> None:
        """Create a gate.

        Args:
            emit: Receives the pieces.
            has_tools: Whether the request offers functions, so that JSON may be a call.
            is_thinking: Whether the text begins within the model's thinking.
        """
        self._emit = emit
        self._has_tools = has_tools
        self._emitted: list[str] = []
        self._rest = ""
        self._before = "\n"
        self._fence = ""
        self._thinking = "<think>" if is_thinking else ""
        self._has_thought = False
        self._is_at_start = True
        self._is_closed = False

    def feed(self, piece: str) -> None:
        """Add a piece of the text."""
        if self._is_closed:
            return
        self._rest += piece
        while self._rest and not self._is_closed and self._step():
            pass

    def finish(self, content: str) -> bool:
        """Emit what is left of `content`, the text of the complete reply. Return whether it continues what was emitted.

        If it does not, nothing is emitted.
        """
        emitted = "".join(self._emitted)
        if content.startswith(emitted):
            if rest := content[len(emitted) :]:
                self._emit(rest)
            return True
        return emitted.rstrip() == content

    def _step(self) -> bool:
        """Go on with the rest; return whether there may be more to do."""
        if self._thinking:
            return self._skip_thinking()
        if self._fence:
            return self._pass_code()
        if self._has_thought:
            self._rest = SOLUTION_TOKENS.sub("", self._rest)
        if self._is_at_start:
            self._rest = self._rest.lstrip() if self._has_thought else self._rest
            if self._rest.isspace() and len(self._rest) < _MAX_HELD:
                return False
            if opened := _OPENED.match(self._rest.lstrip()):
                self._thinking, self._rest = opened[0], self._rest.lstrip()[opened.end() :]
                return True
        text = self._before + self._rest
        found = TOKEN.search(text, 1)
        if found is None:
            partial = _PARTIAL.search(text, 1)
            if len(self._rest) > _MAX_HELD:
                partial = None
            elif partial and self._is_at_start and not text[1 : partial.start()].strip():
                return False
            self._pass(partial.start() - 1 if partial else len(self._rest))
            return False
        self._pass(found.start() - 1)
        return self._pass_token(found)

    def _pass_token(self, found: re.Match[str]) -> bool:
        """Go on with the rest, which begins with a token."""
        token = found[0]
        match found.lastgroup:
            case "fence":
                return self._open_fence(token.strip())
            case "ticks":
                return self._pass_ticks(token)
            case "call" if not LOOKS_LIKE_CALL.match(self._rest, len(token)):
                is_prose = len(self._rest) - len(token) >= _CALL_WIDTH
                self._pass(len(token) if is_prose else 0)
                return is_prose
            case "bare" if len(self._rest) < _CALL_WIDTH and _PARTIAL.fullmatch(self._rest):
                return False
            case "bare" | "action" | "element":
                self._is_closed = self._has_tools
            case "thought":
                self._is_closed = not self._has_thought
            case "think" | "channel":
                self._is_closed = self._before == "\n" or self._is_at_start
            case _:
                self._is_closed = True
        if not self._is_closed:
            self._pass(len(token))
        return True

    def _skip_thinking(self) -> bool:
        closed = close_of(self._thinking, self._rest, 0)
        if closed and not self._rest[closed.end() :] and self._rest[closed.start() - 1 : closed.start()] == "`":
            return False  # a backtick may follow
        if closed is None:
            # Keep what may be the beginning of the end, and the character before it.
            self._rest = self._rest[-len(close_tag(self._thinking)) - 1 :]
            return False
        self._rest = self._rest[closed.end() :]
        self._thinking, self._has_thought = "", True
        return True

    def _open_fence(self, fence: str) -> bool:
        text = self._rest
        line_end = text.find("\n")
        if line_end < 0:
            self._is_closed = len(text) > _MAX_HELD
            return False
        if self._has_tools or "tool" in text[:line_end] or "function" in text[:line_end]:
            self._is_closed = True
        else:
            self._fence = fence
            self._pass(line_end + 1)
        return True

    def _pass_code(self) -> bool:
        line, line_feed, _ = self._rest.partition("\n")
        if not line_feed:
            is_held = line.strip()[:1] in ("", self._fence[0]) and self._before == "\n" and len(line) <= _MAX_HELD
            if not is_held:
                self._pass(len(line))
            return False
        is_end = self._before == "\n" and not line.strip().replace(self._fence[0], "") and self._fence in line
        self._pass(len(line) + 1)
        self._fence = "" if is_end else self._fence
        return True

    def _pass_ticks(self, ticks: str) -> bool:
        text = self._rest
        close = re.compile(rf"[^\n]*?(?<!`){ticks}(?=[^`])").match(text, len(ticks))
        if close is None and "\n" not in text and len(text) < _MAX_HELD:
            return False
        self._pass(close.end() if close else len(ticks))
        return True

    def _pass(self, length: int) -> None:
        """Emit the first `length` characters of the rest."""
        passed, self._rest = self._rest[:length], self._rest[length:]
        if passed:
            self._before = passed[-1]
            self._is_at_start = self._is_at_start and not passed.strip()
            self._emitted.append(passed)
            self._emit(passed)
