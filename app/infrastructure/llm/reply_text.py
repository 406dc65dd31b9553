"""The text of a reply without the model's thinking and without calls that were written as text.

Servers that know their model separate the three; others send them as one text. Tags in code, and tags that prose
mentions, are text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.text_calls import BLOCK, BLOCK_END, CallReader, TextCall, is_json_at

_BAR = r"[|\uff5c]"
_THINK_NAMES = (
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|inner_?monologue|ant-?thinking|seed:think"
    r"|internal_?thoughts?|chain_of_thought)"
)
THINK_OPEN = (
    rf"<{_THINK_NAMES}>|\[THINK\]|\u25c1think\u25b7|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|{_THINK_NAMES}\|>"
    r"|<\|channel>(?:thought)?"
)
_THINK_CLOSE = (
    rf"</{_THINK_NAMES}>|\[/THINK\]|\u25c1/think\u25b7|<\|end_of_thought\|>|<\|END_THINKING\|>"
    rf"|<\|/{_THINK_NAMES}\|>|<channel\|>"
)
_CALL_TAGS = r"(?:[\w-]+:)?(?:tool_?calls?|function_?calls?|tool_use|tool_code|tool_request)"
_CALL_OPEN = (
    rf"<(?P<tag>{_CALL_TAGS})>|<{_BAR}DSML{_BAR}function_calls>|<start_function_call>|\bfunctools(?=\[)"
    rf"|<{_BAR}(?P<token>tool[\u2581_ ]?calls?(?:[\u2581_ ]section)?)(?:[\u2581_ ](?:begin|start))?{_BAR}>"
    r"|\[TOOL_CALLS\]|\[TOOL_REQUEST\]|<\|python_tag\|>|<\|START_ACTION\|>"
)
TOKEN = re.compile(
    rf"(?P<fence>^[ ]{{0,3}}(?:`{{3,}}|~{{3,}}))|(?P<ticks>`+)|(?P<think>{THINK_OPEN})|(?P<thought>{_THINK_CLOSE})"
    rf"|(?P<channel><\|(?:start|channel)\|>)|(?P<call>{_CALL_OPEN})|(?P<block>{BLOCK.pattern})"
    r"|(?P<action>^Action:[ \t]*[\w.-]+[ \t]*\n+[ \t]*Action Input:)|(?P<element>^<[a-z]+(?:_[a-z]+)+>)"
    r"|(?P<bare>^[ \t]*[{\[](?!/?TOOL_|/?THINK\])|\{(?=\s*\"(?:name|function|tool\w*|action|type|id)\"\s*:))",
    re.MULTILINE | re.IGNORECASE,
)
"""Matches code, and what may be the beginning of thinking or of a call."""

_CHANNEL = re.compile(
    r"(?P<header>(?:<\|start\|>[^<]*)?<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>"
    r"(?P<body>.*?)(?:<\|(?:end|return|call)\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.DOTALL,
)
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")
_CALL_CLOSE = re.compile(
    rf"\s*(?:</{_CALL_TAGS}>|</{_BAR}DSML{_BAR}function_calls>|<end_function_call>|\[/TOOL_CALLS\]|\[END_TOOL_REQUEST\]"
    rf"|<{_BAR}tool[\u2581_ ]?calls?(?:[\u2581_ ]section)?[\u2581_ ]end{_BAR}>|<\|END_ACTION\|>|<\|e(?:om|ot)_id\|>)",
    re.IGNORECASE,
)
LOOKS_LIKE_CALL = re.compile(r"\s*(?:[{\[]|<[\w:|\uff5c\u2581]|[\w.-]+(?:[(\[{<]|\s*\{|[ \t]*\n))")
"""Matches what follows the start of a call, but not prose that mentions it."""

_CALL_FENCE = re.compile(r"tool_?calls?|tool_code|function_?calls?|tool_use", re.IGNORECASE)
_DATA_FENCE = re.compile(r"(?:json|xml|text|plaintext|python|py)?", re.IGNORECASE)
_MAX_FAILURES = 20
"""Maximum number of pieces of markup that turn out to be text, before the rest is text too. It bounds the time."""

_SPACE = re.compile(r"\s*")
_PYTHON_LIST = re.compile(r"\[\s{0,60}[\w.]{1,80}\(")
SOLUTION_TOKENS = re.compile(r"<\|(?:(?:begin|end)_of_solution|(?:START|END)_RESPONSE)\|>\s*")


@dataclass(frozen=True, slots=True)
class ReadText:
    """The parts of a text."""

    content: str
    calls: tuple[TextCall, ...] = ()
    has_markup: bool = False
    """Whether there is markup of calls, understood or not."""
    was_thinking: bool = False
    """Whether the text began within the model's thinking, because the prompt opens it."""


def read_text(text: str, tools: Sequence[ToolSpec]) -> ReadText:
    """Return the content and the calls of a text. `tools`: the functions that the request offers."""
    return _Reader(text, tools).read()


class _Reader:
    """Reads one text from its beginning to its end."""

    def __init__(self, text: str, tools: Sequence[ToolSpec], *, is_nested: bool = False) -> None:
        self._text = text
        self._is_nested = is_nested
        self._tools = tools
        self._reader = CallReader(tools)
        self._visible: list[str] = []
        self._calls: list[TextCall] = []
        self._has_markup = False
        self._has_thought = False
        self._was_thinking = False
        self._unclosed: set[str] = set()
        """The tags that open thinking and are not closed in the rest of the text."""

    def read(self) -> ReadText:
        position = failures = 0
        while found := TOKEN.search(self._text, position):
            if position < found.start():
                self._visible.append(self._text[position : found.start()])
            kind = str(found.lastgroup)
            is_text = self._is_indented_code(found) or (failures >= _MAX_FAILURES and self._is_expensive(found))
            end = None if is_text else _READ[kind](self, found)
            if end is None:  # no markup after all
                failures += not is_text and self._is_expensive(found)
                self._visible.append(found[0])
                end = found.end()
            position = end
        self._visible.append(self._text[position:])
        content = "".join(self._visible)
        if self._has_thought:
            content = SOLUTION_TOKENS.sub("", content)
        if self._has_thought or self._has_markup:
            content = content.strip()
        calls = tuple(self._calls) if self._tools else ()
        return ReadText(content, calls, self._has_markup, self._was_thinking)

    def _is_expensive(self, found: re.Match[str]) -> bool:
        """Return whether reading `found` takes a time that grows with the text after it."""
        match found.lastgroup:
            case "bare":
                start = found.end() - 1
                return bool(_MAY_BE_CALL.match(self._text, start) or _PYTHON_LIST.match(self._text, start))
            case "element":
                return self._reader.is_offered(found[0][1:-1])
            case kind:
                return kind in ("call", "block")

    def read_fence(self, found: re.Match[str]) -> int:
        """Read a block of code. It is text, unless it is nothing but a call."""
        fence = found[0].strip()
        close = re.compile(rf"^[ \t]*{re.escape(fence)}{re.escape(fence[0])}*[ \t]*$", re.MULTILINE)
        line_end = self._text.find("\n", found.end())
        line_end = len(self._text) if line_end < 0 else line_end
        ended = close.search(self._text, min(line_end + 1, len(self._text)))
        end = ended.end() if ended else len(self._text)
        info = self._text[found.end() : line_end].strip()
        body = self._text[line_end : ended.start() if ended else end]
        if _CALL_FENCE.fullmatch(info) and (calls := self._reader.read(body)):
            return self._add_calls(calls, end)
        if self._tools and _DATA_FENCE.fullmatch(info) and not self._text_follows(end):
            is_markup = body.lstrip().startswith(("<", "[TOOL")) and not self._is_nested
            inner = _Reader(body, self._tools, is_nested=True).read() if is_markup else None
            calls = list(inner.calls) if inner and not inner.content else self._reader.read(body)
            if self._reader.are_offered(calls):
                return self._add_calls(calls, end)
        self._visible.append(self._text[found.start() : end])
        return end

    def read_ticks(self, found: re.Match[str]) -> int | None:
        """Read code within a line."""
        close = re.compile(rf"[^\n]*?(?<!`){found[0]}(?!`)").match(self._text, found.end())
        if close is None:
            return None
        self._visible.append(self._text[found.start() : close.end()])
        return close.end()

    def read_thinking(self, found: re.Match[str]) -> int | None:
        """Read a block of thinking: at the beginning of the text, or of a line."""
        text, start = self._text, found.end()
        is_at_start = self._is_at_start
        if not is_at_start and (not _begins_line(text, found.start()) or text[start : start + 1] in (" ", "")):
            return None
        closed = self._close_of_thinking(found[0], start)
        if is_at_start:
            if closed is None and not self._is_nested:
                # Some models make their calls while they think.
                thought = _Reader(text[start:], self._tools, is_nested=True).read()
                if self._reader.are_offered(thought.calls):
                    self._add_calls(thought.calls, len(text))
            elif closed and _is_mention(text, found, closed):
                return None
        elif closed is None:
            return None
        self._has_thought = True
        if closed is None:
            return len(text)
        return _skip_space(text, closed.end()) if is_at_start else closed.end()

    def _close_of_thinking(self, opened: str, position: int) -> re.Match[str] | None:
        opened = opened.lower() if "START" not in opened else opened
        if opened in self._unclosed:  # a tag without an end has none further on
            return None
        closed = close_of(opened, self._text, position)
        if closed is None:
            self._unclosed.add(opened)
        return closed

    def read_thinking_end(self, found: re.Match[str]) -> int | None:
        """Read the end of thinking whose beginning was in the prompt."""
        if self._has_thought or not _is_on_its_own(self._text, found):
            return None
        self._visible.clear()
        self._has_thought = self._was_thinking = True
        end = _skip_space(self._text, found.end())
        if end < len(self._text):
            self._calls.clear()
            self._has_markup = False
        return end

    def read_channel(self, found: re.Match[str]) -> int | None:
        """Read a message of gpt-oss, which goes to a channel or to a function."""
        if not (self._is_at_start or self._has_thought or _begins_line(self._text, found.start())):
            return None
        message = _CHANNEL.match(self._text, found.start())
        if message is None:
            return len(self._text) if self._is_at_start else None
        self._has_thought = True
        header, body = message["header"], message["body"]
        if recipient := _RECIPIENT.search(header):
            name = recipient[1].removeprefix("functions.")
            return self._add_calls([TextCall(name, body.strip())], message.end())
        if "analysis" not in header:
            self._visible.append(body)
        return message.end()

    def read_call(self, found: re.Match[str]) -> int | None:
        """Read a call in markup."""
        text, start = self._text, found.end()
        if not LOOKS_LIKE_CALL.match(text, start):
            return None
        calls, end = self._reader.read_sequence(text, start)
        close = _CALL_CLOSE.match(text, end)
        if calls:
            return self._add_markup(found, calls, close.end() if close else end)
        close = self._close_after(found)
        body, end = text[start : close.start() if close else len(text)], close.end() if close else len(text)
        calls = self._reader.read(body) or self._reader.read_broken(body)
        is_certain = body.lstrip()[:1] in ("{", "[", "<") and (close is not None or '"' in body or "=" in body)
        if not calls and not (is_certain and re.search(r"[\"'=<]", body)):
            return None
        return self._add_markup(found, calls, end)

    def read_block(self, found: re.Match[str]) -> int | None:
        """Read a call whose arguments are elements, without markup around it."""
        text = self._text
        close = BLOCK_END.search(text, found.end())
        following = text[found.end() : found.end() + 200].lstrip()
        if close is None and not following.lower().startswith(("<parameter", "{")):
            return None
        end = close.end() if close else len(text)
        # What closes the markup around it may be left over.
        while left := _CALL_CLOSE.match(text, end):
            end = left.end()
        return self._add_markup(found, self._reader.read(text[found.start() : end]), end)

    def read_action(self, found: re.Match[str]) -> int | None:
        """Read a call as in a text of thoughts, actions and observations."""
        name = found[0].partition("\n")[0].removeprefix(found[0][:7]).strip()
        body = self._text[found.end() :].partition("\nObservation:")[0]
        calls = [TextCall(name, body.strip() or "{}")]
        # What follows the observation is invented.
        return self._add_calls(calls, len(self._text)) if self._reader.are_offered(calls) else None

    def read_element(self, found: re.Match[str]) -> int | None:
        """Read a call whose name is that of an element."""
        name = found[0][1:-1]
        if not self._reader.is_offered(name):
            return None
        end = self._text.find(f"</{name}>", found.end())
        calls = self._reader.read_element(name, self._text[found.end() : end]) if end >= 0 else []
        return self._add_calls(calls, end + len(name) + 3) if self._reader.are_offered(calls) else None

    def read_bare(self, found: re.Match[str]) -> int | None:
        """Read JSON or Python at the beginning of a line: a call, if nothing follows it."""
        if not self._tools:
            return None
        text, start = self._text, found.end() - 1
        if _PYTHON_LIST.match(text, start):
            calls, end = self._reader.read_python(text[start:]), len(text)
        elif not _MAY_BE_CALL.match(text, start):
            return None
        else:
            calls, end = self._reader.read_sequence(text, start)
            if not calls and not is_json_at(text, start):
                calls, end = self._reader.read_broken(text[start:]), len(text)
        while left := _CALL_CLOSE.match(text, end):
            end = left.end()
        if text[end:].strip() or not self._reader.are_offered(calls):
            return None
        return self._add_calls(calls, end)

    @property
    def _is_at_start(self) -> bool:
        return not any(part.strip() for part in self._visible)

    def _is_indented_code(self, found: re.Match[str]) -> bool:
        start = found.end() - len(found[0].lstrip(" \t"))
        line = self._text.rfind("\n", max(0, start - 40), start) + 1
        indent = self._text[line:start]
        return line > 0 and indent.isspace() and (len(indent) >= 4 or "\t" in indent) and not self._is_at_start

    def _text_follows(self, position: int) -> bool:
        """Return whether text follows that is no other block of code."""
        following = _skip_space(self._text, position)
        return following < len(self._text) and not self._text.startswith("```", following)

    def _close_after(self, found: re.Match[str]) -> re.Match[str] | None:
        tag = found["tag"]
        close = re.compile(rf"</{re.escape(tag)}>", re.IGNORECASE) if tag else _CALL_CLOSE
        if (found["token"] or "").endswith("s") or "section" in (found["token"] or ""):
            # The calls of a section have ends of their own.
            close = re.compile(rf"<{_BAR}tool[\u2581_ ]?calls(?:[\u2581_ ]section)?[\u2581_ ]end{_BAR}>")
        return close.search(self._text, found.end())

    def _add_markup(self, found: re.Match[str], calls: Sequence[TextCall], end: int) -> int | None:
        """Add calls unless prose mentions them: an example of a call to another function, within a line."""
        after = self._text[end:].partition("\n")[0].strip()
        is_within_line = not _begins_line(self._text, found.start()) and after and not TOKEN.match(after)
        if is_within_line and not self._reader.are_offered(calls):
            return None
        return self._add_calls(calls, end)

    def _add_calls(self, calls: Sequence[TextCall], end: int) -> int:
        self._calls += calls
        self._has_markup = True
        return end


_READ: dict[str, Callable[[_Reader, re.Match[str]], int | None]] = {
    "fence": _Reader.read_fence,
    "ticks": _Reader.read_ticks,
    "think": _Reader.read_thinking,
    "thought": _Reader.read_thinking_end,
    "channel": _Reader.read_channel,
    "call": _Reader.read_call,
    "block": _Reader.read_block,
    "action": _Reader.read_action,
    "element": _Reader.read_element,
    "bare": _Reader.read_bare,
}
_MAY_BE_CALL = re.compile(
    r"[\[\s{]{0,200}\"(?:id|type|tool\w*|function\w*|name|action\w*|arguments|parameters|args|input|params|[a-z]+_[a-z_]+)\"\s*:"
)
"""Matches the beginning of JSON that may be a call."""


def close_tag(opened: str) -> str:
    """Return the tag that ends a block of thinking."""
    if opened.startswith("<|channel>"):
        return "<channel|>"
    if "|" not in opened:
        return opened[0] + "/" + opened[1:]
    closed = opened.replace("begin", "end").replace("START", "END")
    return closed if closed != opened else opened.replace("<|", "<|/")


def close_of(opened: str, text: str, position: int) -> re.Match[str] | None:
    """Return the end of a block of thinking that is not quoted in it."""
    for found in re.compile(re.escape(close_tag(opened)), re.IGNORECASE).finditer(text, position):
        if text[found.start() - 1 : found.start()] != "`" or text[found.end() : found.end() + 1] != "`":
            return found
    return None


def _is_mention(text: str, opened: re.Match[str], closed: re.Match[str]) -> bool:
    """Return whether a sentence begins with both tags: "<think> and </think> mark …"."""
    inner, after = text[opened.end() : closed.start()], text[closed.end() : closed.end() + 2]
    return (
        inner[:1] == " " and "\n" not in inner and len(inner.split()) <= 3 and after[:1] == " " and after[1:].islower()
    )


def _is_on_its_own(text: str, found: re.Match[str]) -> bool:
    """Return whether a closing tag ends a thought rather than being mentioned in a sentence."""
    before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
    after = text[found.end() :].partition("\n")[0]
    if not before.strip():
        return not (after[:1].isspace() and after.lstrip()[:1].islower())
    is_glued = not before[-1].isspace() and before[-1] not in "\"'`([*_"
    ends_sentence = before.rstrip()[-1] in ".!?\u2026:;)"
    if not after.strip():
        return is_glued or ends_sentence
    return is_glued and (after[0].isupper() or (ends_sentence and not after[0].isspace()))


def _begins_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", 0, position) + 1 : position].strip()


def _skip_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position
