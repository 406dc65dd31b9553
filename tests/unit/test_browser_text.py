"""URLs, paths and keys that a model writes; network errors; and the lines of a page that a snapshot shows."""

from typing import cast

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp
from app.infrastructure.browser.cdp import net_failure
from app.infrastructure.browser.frames import IsolatedWorld
from app.infrastructure.browser.model_input import (
    candidate_urls,
    parse_keys,
    shown_url,
    window_action,
    workspace_path,
)
from app.infrastructure.browser.snapshot import (
    RESTART_NUMBERS_AT,
    Line,
    PageLines,
    Selection,
    SnapshotHistory,
    changed_lines,
    select_lines,
)

HOME = "/data/workspace"


@pytest.mark.parametrize(
    ("url", "candidates"),
    [
        ("https://a.example/x?y#z", ("https://a.example/x?y#z",)),
        ("  HTTP://a.example ", ("HTTP://a.example",)),
        ("a.example", ("https://a.example", "http://a.example")),
        ("a.example/path?q=1", ("https://a.example/path?q=1", "http://a.example/path?q=1")),
        ("//a.example/x", ("https://a.example/x",)),
        ("localhost:3000/x", ("http://localhost:3000/x", "https://localhost:3000/x")),
        ("a.example:8080", ("http://a.example:8080", "https://a.example:8080")),
        ("a.example:443", ("https://a.example:443", "http://a.example:443")),
        ("127.0.0.1", ("http://127.0.0.1", "https://127.0.0.1")),
        ("[::1]:80", ("http://[::1]:80", "https://[::1]:80")),
        ("printer.local", ("http://printer.local", "https://printer.local")),
        ("日本.example", ("https://日本.example", "http://日本.example")),
        ("about:blank", ("about:blank",)),
        ("data:text/html,<p>x", ("data:text/html,<p>x",)),
        ("~/a b.html", ("file:///data/workspace/a%20b.html",)),
        ("/home/ubuntu/a.html", ("file:///data/workspace/a.html",)),
        ("/data/workspace/a.html", ("file:///data/workspace/a.html",)),
        ("file:///data/workspace/a%20b.html", ("file:///data/workspace/a%20b.html",)),
    ],
)
def test_candidate_urls_of_valid_input(url: str, candidates: tuple[str, ...]) -> None:
    assert candidate_urls(url, HOME) == candidates


@pytest.mark.parametrize(
    "url",
    [
        "",
        "two words",
        "ftp://a.example/",
        "chrome://settings",
        "about:memory",
        "javascript:alert(1)",
        "mailto:a@b.c",
        "http://",
        "http:///path",
        "https://a.example:99999999/",
        "/etc/passwd",
        "~/../x",
        "file:///etc/passwd",
        "file:///data/workspace/../secret",
        "file:///data/workspace%2F..%2Fsecret",
        "file:///data/workspace-other/x",
        "file://[",
    ],
)
def test_candidate_urls_of_invalid_input_raises(url: str) -> None:
    with pytest.raises(BrowserFailure):
        candidate_urls(url, HOME)


def test_candidate_url_of_a_path_with_half_a_character_is_encodable() -> None:
    assert candidate_urls("~/\ud800", HOME) == (f"file://{HOME}/%3F",)
    assert shown_url("file://[", HOME) == "file://["


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        ("~", HOME),
        ("~/x", f"{HOME}/x"),
        ("x/y", f"{HOME}/x/y"),
        ("./x", f"{HOME}/x"),
        ("/home/ubuntu", HOME),
        ("/home/ubuntu/x", f"{HOME}/x"),
        ("/home/ubuntux/x", "/home/ubuntux/x"),
        ("/tmp/x", "/tmp/x"),
    ],
)
def test_workspace_path_is_absolute(path: str, absolute: str) -> None:
    assert workspace_path(path, HOME) == absolute


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/file:/x", "https://a.example/file:/x"),
        ("file:///data/workspace/a%20b.html", "~/a b.html"),
        ("file:///data/workspace-other/x", "file:///data/workspace-other/x"),
        ("file:///data/workspace", "~"),
    ],
)
def test_shown_url_replaces_workspace_with_tilde(url: str, shown: str) -> None:
    assert shown_url(url, HOME) == shown


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        ("a", "a"),
        ("+", "+"),
        (" ", " "),
        ("enter", "Enter"),
        ("Return", "Enter"),
        ("ctrl+a", "Control+a"),
        ("CTRL + Shift + T", "Control+Shift+T"),
        ("shift+control+x", "Control+Shift+x"),
        ("Control++", "Control++"),
        ("cmd+c", "Meta+c"),
        ("PgDn", "PageDown"),
        ("f11", "F11"),
        ("Bogus", "Bogus"),
    ],
)
def test_parse_keys_accepts_common_names(key: str, parsed: str) -> None:
    assert parse_keys(key) == parsed


@pytest.mark.parametrize(
    ("keys", "action"),
    [
        ("Alt+ArrowLeft", "back"),
        ("Alt+ArrowRight", "forward"),
        ("F5", "reload"),
        ("Control+R", "reload"),
        ("Control+w", "close"),
        ("Control+Tab", "next"),
        ("Control+Shift+Tab", "previous"),
        ("Control+t", "new"),
        ("w", None),
        ("Control+a", None),
        ("ArrowLeft", None),
    ],
)
def test_window_action_of_keys(keys: str, action: str | None) -> None:
    assert window_action(keys) == action


def test_net_failure_gives_reason_and_error_code() -> None:
    message = str(net_failure("net::ERR_NAME_NOT_RESOLVED", "http://a.example"))
    assert message == "http://a.example cannot be opened: there is no host of that name (ERR_NAME_NOT_RESOLVED)."
    assert "its certificate is not valid (ERR_CERT_WEAK_KEY)" in str(net_failure("net::ERR_CERT_WEAK_KEY", "u"))
    assert str(net_failure("net::ERR_SOMETHING_NEW", "u")) == "u cannot be opened (ERR_SOMETHING_NEW)."


def page(count: int, *, top: float = 0.0, size: int = 90) -> PageLines:
    """`count` lines, each 20 pixels high, the first at `top`; the viewport is 200 pixels high."""
    lines = [Line(f"line {n} ".ljust(size, "."), top + 20 * n, top + 20 * n + 20) for n in range(count)]
    return PageLines(lines=lines, height=200, top=top, bottom=top + 20 * count)


def test_short_page_is_selected_whole() -> None:
    selection = select_lines(page(50), limit=5000)
    assert (len(selection.lines), selection.unshown) == (50, "")


def test_long_page_is_selected_from_viewport_down() -> None:
    selection = select_lines(page(1000, top=-4000), limit=2000)
    assert selection.lines[0].text.startswith("line 199 ")
    assert len(selection.text) <= 2000
    assert selection.unshown == "20 screens above, 78 screens below"


def test_end_of_page_is_filled_with_lines_above() -> None:
    selection = select_lines(page(100, top=-1800), limit=2000)
    assert selection.lines[-1].text.startswith("line 99 ")
    assert len(selection.lines) > 12
    assert selection.unshown == "7.9 screens above"


def test_unread_parts_count_as_unshown() -> None:
    part = page(10, top=-400)
    longer = PageLines(lines=part.lines, height=200, top=-2400, bottom=3000, cut_above=True, cut_below=True)
    assert select_lines(longer).unshown == "10 screens above, 16 screens below"


def test_lines_outside_pane_come_last_and_do_not_count_as_unshown() -> None:
    part = page(15)
    hidden = [Line(f"hidden {n} ".ljust(90, "."), 30 + n, 50 + n, outside=True) for n in range(15)]
    both = PageLines(lines=[*hidden, *part.lines], height=200, top=0, bottom=300)
    selection = select_lines(both, limit=2000)
    assert sum("line" in line.text for line in selection.lines) == 15
    assert 0 < sum("hidden" in line.text for line in selection.lines) < 15
    assert selection.unshown == ""


def test_single_long_line_is_cut() -> None:
    part = PageLines(lines=[Line("x" * 50_000, 0, 20)], height=200, top=0, bottom=20)
    assert select_lines(part, limit=100).text == "x" * 99 + "…"


def test_gaps_become_blank_lines() -> None:
    lines = (Line("a", 0, 1, gap=True), Line("b", 1, 2), Line("c", 2, 3, gap=True))
    assert Selection(lines=lines, unshown="").text == "a\nb\n\nc"


def test_changed_lines_of_large_page() -> None:
    before = page(50).lines
    now = [*before[:10], Line("new", 0, 0), *before[11:]]
    removed_line = f"- {before[10].text[:79]}…"
    assert changed_lines(before, now) == f"{removed_line}\n+ new"
    assert changed_lines(before, now, removed=False) == "+ new"
    assert changed_lines(before, before) == ""


def test_repeated_line_counts_as_new() -> None:
    before = page(50).lines
    assert changed_lines(before, [*before, before[0]]) == f"+ {before[0].text}"


def test_changed_lines_of_small_or_mostly_changed_page_is_none() -> None:
    small = page(5).lines
    assert changed_lines(small, small) is None
    assert changed_lines(page(50).lines, page(50, size=95).lines) is None


def test_changed_lines_limits_removed_lines() -> None:
    before = page(60).lines
    changes = changed_lines(before, before[:30])
    assert changes is not None
    assert changes.splitlines()[-1] == "- (22 more lines)"
    assert len(changes.splitlines()) == 9


def test_snapshot_history_restarts_numbers_only_for_unnumbered_document() -> None:
    history = SnapshotHistory()
    first, second = (IsolatedWorld(cast("cdp.Channel", None), 1, id, None) for id in ("first", "second"))
    history.add_numbers(first, RESTART_NUMBERS_AT + 2)
    history.start_reading(first)
    assert history.next_number == RESTART_NUMBERS_AT + 2
    history.start_reading(second)
    assert history.next_number == 1
    history.add_numbers(second, 3)
    assert second.numbers == [range(1, 3)]
