"""What is opened for what a model writes, which keys it means, and which lines of a page it is told."""

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.addresses import addresses, shown_url, workspace_path
from app.infrastructure.browser.excerpt import Line, Sheet, changes, choose, joined
from app.infrastructure.browser.failures import net_failure
from app.infrastructure.browser.keys import parse_keys, window_key

HOME = "/data/workspace"


@pytest.mark.parametrize(
    ("url", "opened"),
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
def test_a_url_is_opened_as_it_is_meant(url: str, opened: tuple[str, ...]) -> None:
    assert addresses(url, HOME) == opened


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
    ],
)
def test_what_is_no_url_or_not_to_be_opened_is_refused(url: str) -> None:
    with pytest.raises(BrowserFailure):
        addresses(url, HOME)


@pytest.mark.parametrize(
    ("path", "meant"),
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
def test_paths_are_those_of_the_workspace(path: str, meant: str) -> None:
    assert workspace_path(path, HOME) == meant


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://a.example/file:/x", "https://a.example/file:/x"),
        ("file:///data/workspace/a%20b.html", "~/a b.html"),
        ("file:///data/workspace-other/x", "file:///data/workspace-other/x"),
        ("file:///data/workspace", "~"),
    ],
)
def test_files_of_the_workspace_are_told_without_where_it_is(url: str, told: str) -> None:
    assert shown_url(url, HOME) == told


@pytest.mark.parametrize(
    ("key", "pressed"),
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
def test_keys_are_understood_by_their_many_names(key: str, pressed: str) -> None:
    assert parse_keys(key) == pressed


@pytest.mark.parametrize(
    ("keys", "meaning"),
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
def test_some_keys_are_for_the_window_and_not_for_the_page(keys: str, meaning: str | None) -> None:
    assert window_key(keys) == meaning


def test_what_the_network_did_is_told_in_words_with_chromiums_own_name_for_it() -> None:
    said = str(net_failure("net::ERR_NAME_NOT_RESOLVED", "http://a.example"))
    assert said == "http://a.example cannot be opened: there is no host of that name (ERR_NAME_NOT_RESOLVED)."
    assert "its certificate is not valid (ERR_CERT_WEAK_KEY)" in str(net_failure("net::ERR_CERT_WEAK_KEY", "u"))
    assert str(net_failure("net::ERR_SOMETHING_NEW", "u")) == "u cannot be opened (ERR_SOMETHING_NEW)."


def page(count: int, *, top: float = 0.0, size: int = 90) -> Sheet:
    """`count` lines, each 20 pixels high, the first at `top`; the viewport is 200 pixels high."""
    lines = [Line(f"line {n} ".ljust(size, "."), top + 20 * n, top + 20 * n + 20) for n in range(count)]
    return Sheet(lines=lines, height=200, top=top, bottom=top + 20 * count)


def test_a_page_that_fits_is_told_whole() -> None:
    excerpt = choose(page(50), limit=5000)
    assert (len(excerpt.lines), excerpt.unshown) == (50, "")


def test_a_long_page_is_told_from_the_viewport_down_and_says_what_is_missing() -> None:
    excerpt = choose(page(1000, top=-4000), limit=2000)
    assert excerpt.lines[0].text.startswith("line 199 ")
    assert len(excerpt.text) <= 2000
    assert excerpt.unshown == "20 screens above, 78 screens below"


def test_at_the_end_of_a_page_what_is_above_fills_the_view() -> None:
    excerpt = choose(page(100, top=-1800), limit=2000)
    assert excerpt.lines[-1].text.startswith("line 99 ")
    assert len(excerpt.lines) > 12
    assert excerpt.unshown == "7.9 screens above"


def test_what_was_not_even_read_counts_as_missing() -> None:
    sheet = page(10, top=-400)
    longer = Sheet(lines=sheet.lines, height=200, top=-2400, bottom=3000, cut_above=True, cut_below=True)
    assert choose(longer).unshown == "10 screens above, 16 screens below"


def test_what_a_pane_hides_comes_last_and_is_not_missed() -> None:
    sheet = page(15)
    hidden = [Line(f"hidden {n} ".ljust(90, "."), 30 + n, 50 + n, outside=True) for n in range(15)]
    both = Sheet(lines=[*hidden, *sheet.lines], height=200, top=0, bottom=300)
    excerpt = choose(both, limit=2000)
    assert sum("line" in line.text for line in excerpt.lines) == 15
    assert 0 < sum("hidden" in line.text for line in excerpt.lines) < 15
    assert excerpt.unshown == ""


def test_a_single_line_without_end_is_cut() -> None:
    sheet = Sheet(lines=[Line("x" * 50_000, 0, 20)], height=200, top=0, bottom=20)
    assert choose(sheet, limit=100).text == "x" * 99 + "…"


def test_gaps_become_blank_lines() -> None:
    assert joined([Line("a", 0, 1, gap=True), Line("b", 1, 2), Line("c", 2, 3, gap=True)]) == "a\nb\n\nc"


def test_of_a_large_page_only_what_changed_is_told() -> None:
    before = page(50).lines
    now = [*before[:10], Line("new", 0, 0), *before[11:]]
    gone = f"- {before[10].text[:79]}…"
    assert changes(before, now) == f"{gone}\n+ new"
    assert changes(before, now, gone=False) == "+ new"
    assert changes(before, before) == ""


def test_a_line_that_is_there_once_more_is_new() -> None:
    before = page(50).lines
    assert changes(before, [*before, before[0]]) == f"+ {before[0].text}"


def test_a_small_page_and_one_that_changed_altogether_are_told_whole() -> None:
    small = page(5).lines
    assert changes(small, small) is None
    assert changes(page(50).lines, page(50, size=95).lines) is None


def test_of_many_lines_that_are_gone_a_few_are_told() -> None:
    before = page(60).lines
    told = changes(before, before[:30])
    assert told is not None
    assert told.splitlines()[-1] == "- (22 more lines)"
    assert len(told.splitlines()) == 9
