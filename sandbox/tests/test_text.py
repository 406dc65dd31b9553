"""Pure functions: rendering, marks, excerpts, encodings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.shell.excerpt import excerpt
from sandbox.shell.marks import Mark, MarkReader
from sandbox.shell.output import FILE_BYTES, Output
from sandbox.shell.terminal import render, unfinished

SEQUENCES = st.sampled_from(
    [
        "\x1b[31m",
        "\x1b[A",
        "\x1b[2K",
        "\x1b[5;5H",
        "\x1b[?1049h",
        "\x1b[?1049l",
        "\x1b]0;t\x07",
        "\x1b]",
        "\x1b[",
        "\x1b",
        "\r",
        "\x08",
        "\n",
        "\t",
        "\x1b[99999C",
        "\x1b[1;2r",
        "\x1bM",
        "\x1bc",
        "\x9b",
        "é",
        "世",
        "word",
        "\x07",
    ]
)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\n\ttab\r\n", "plain\n\ttab\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("10%\r20%\r100%\n", "100%\n"),
        ("long line\rshort", "shortline"),
        ("long line\r\x1b[Kshort", "short"),
        ("abc\b\bX", "aXc"),
        ("a\x1b[3Cb", "a   b"),
        ("one\ntwo\x1b[A\rONE", "ONE\ntwo"),
        ("a\x1b[2J\x1b[Hb", "b"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://l\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("before\n\x1b[?1049hfull\x1b[Hscreen\x1b[?1049lafter", "before\nafter"),
        ("\x07bell\x00", "bell"),
        ("\x1b[?25l\x1b[?2004hx\x1b(B", "x"),
        ("match\x1b[m\x1b[K\n", "match\n"),
    ],
)
def test_control_sequences_are_resolved(raw, shown):
    assert render(raw.encode()) == shown


def test_wrapped_line_stays_one_line():
    text = "x" * 400
    assert render(f"top\x1b[A\r\n{text}\nend\x1b[A\x1b[B".encode()).split("\n")[1:] == [text, "end"]


def test_lines_scrolled_off_screen_are_kept():
    lines = "".join(f"{number}\n" for number in range(100))
    assert render(f"{lines}a\x1b[A\x1b[B".encode()).split("\n")[:3] == ["0", "1", "2"]


@given(st.lists(SEQUENCES | st.text(max_size=5), max_size=30).map("".join))
def test_rendered_text_contains_no_control_characters(text):
    shown = render(text.encode("utf-8", "replace"))
    assert not any((letter < " " and letter not in "\n\t") or "\x7f" <= letter <= "\x9f" for letter in shown)


@given(st.binary(max_size=200))
def test_any_bytes_can_be_rendered(data):
    assert "\x1b" not in render(data)
    assert 0 <= unfinished(data) <= max(64, len(data))


@pytest.mark.parametrize(
    ("data", "held"),
    [
        (b"abc", 0),
        ("é".encode()[:1], 1),
        ("世".encode()[:2], 2),
        ("世".encode(), 0),
        (b"a\x1b[3", 3),
        (b"a\x1b[3m", 0),
        (b"\x1b", 1),
        (b"x\x1b]0;ti", 6),
        (b"x\x1b]0;t\x07", 0),
        (b"\x1b[31mabc", 0),
    ],
)
def test_incomplete_characters_and_sequences_are_held_back(data, held):
    assert unfinished(data) == held


@given(st.lists(st.binary(max_size=12), max_size=8), st.integers(1, 7))
def test_marks_are_found_in_stream_cut_anywhere(pieces, size):
    stream, expected = b"", b""
    for number, piece in enumerate(pieces):
        stream += piece + b"\x1b]7717;word;%d;E;3\x07" % number
        expected += piece
    reader = MarkReader("word")
    out = [part for at in range(0, len(stream), size) for part in reader.feed(stream[at : at + size])]
    assert b"".join(part for part in out if isinstance(part, bytes)) == expected
    assert [part for part in out if isinstance(part, Mark)] == [Mark(n, b"E", 3) for n in range(len(pieces))]


def test_marks_of_another_shell_are_output():
    assert MarkReader("mine").feed(b"\x1b]7717;other;1;E;0\x07") == [b"\x1b]7717;other;1;E;0\x07"]


@given(st.lists(st.binary(min_size=1, max_size=40_000), max_size=20), st.integers(0, 100_000))
def test_output_accounts_for_every_byte(chunks, position):
    from pathlib import Path

    output = Output(Path("unused"))
    whole = b"".join(chunks)
    for chunk in chunks:
        output.append(chunk)
    before, after, gap = output.read_from(min(position, len(whole)))
    assert len(before) + len(after) + gap == len(whole) - min(position, len(whole))
    assert whole.endswith(after if gap else before)


def test_output_file_ends_at_limit_with_note(tmp_path):
    output = Output(tmp_path / "out")
    output.open()
    for _ in range(70):
        output.append(b"x" * 1024 * 1024)
    output.close()
    data = (tmp_path / "out").read_bytes()
    assert output.cut and len(data) < FILE_BYTES + 100 and b"cut here" in data[-100:]


def test_excerpt_keeps_both_ends_and_counts_cut_characters():
    shown = excerpt((b"a" * 10_000 + b"b" * 10_000, b"", 0), "/file", 1000)
    assert shown.truncated and shown.text.startswith("a" * 500) and shown.text.endswith("b" * 500)
    assert "19000 characters cut" in shown.text and "/file" in shown.text
