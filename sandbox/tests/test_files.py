"""The file API on real files."""

import asyncio
import os
import re
import socket
import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.files.paths import PathResolver
from sandbox.files.reading import Selection, read
from sandbox.settings import Settings
from sandbox.web import Failure, FileResponse


async def test_written_file_is_read_by_absolute_path(box):
    data = await box.file("write", file="a/b/notes.txt", content="one\ntwo\nthree")
    path, known = f"{box.home}/a/b/notes.txt", {"encoding": "utf-8", "encoding_is_guess": False, "note": ""}
    assert data == {"file": path, "bytes_written": 13, **known}
    data = await box.file("read", file="~/a/b/notes.txt")
    assert data == {
        "content": "one\ntwo\nthree",
        "line_count": 3,
        "file": path,
        "truncated": False,
        "next_line": None,
        "next_char": None,
        **known,
    }


@pytest.mark.parametrize(
    ("start", "end", "content"),
    [(0, 1, "l0\n"), (1, 3, "l1\nl2\n"), (2, None, "l2\nl3\n"), (9, None, ""), (3, 99, "l3\n"), (1, 1, "")],
)
async def test_line_range_starts_at_zero_and_excludes_end(box, start, end, content):
    await box.file("write", file="f", content="l0\nl1\nl2\nl3\n")
    data = await box.file("read", file="f", start_line=start, end_line=end)
    assert (data["content"], data["line_count"]) == (content, 4)


async def test_line_range_across_chunks_is_exact(box):
    (box.home / "f").write_text("".join(f"line {n:07d}\n" for n in range(200_000)))
    for start in (0, 20163, 21845, 199_999):
        data = await box.file("read", file="f", start_line=start, end_line=start + 3)
        assert data["content"].splitlines()[0] == f"line {start:07d}" and data["line_count"] == 200_000
        assert len(data["content"].splitlines()) == min(3, 200_000 - start)


async def test_write_appends_and_adds_newlines(box):
    await box.file("write", file="f", content="a", trailing_newline=True)
    await box.file("write", file="f", content="b", append=True, leading_newline=True, trailing_newline=True)
    assert (box.home / "f").read_text() == "a\n\nb\n"


async def test_large_file_is_read_in_parts(box):
    (box.home / "f").write_text("".join(f"{n:099d}\n" for n in range(30_000)))
    start, seen = 0, ""
    for _ in range(10):
        data = await box.file("read", file="f", start_line=start)
        assert len(data["content"]) <= 1024 * 1024
        seen += data["content"]
        if not data["truncated"]:
            break
        start = data["next_line"]
        assert f"start_line={start}" in data["note"]
    assert seen == (box.home / "f").read_text()


async def test_huge_file_is_read_in_bounded_memory_and_time(box):
    with open(box.home / "huge", "wb") as file:
        file.write(b"first\n")
        file.truncate(10 * 1024**3)
    began = time.monotonic()
    assert "binary file" in await box.file("read", 400, file="huge")
    first = time.monotonic() - began
    began = time.monotonic()
    with open(box.home / "huge", "wb") as file:
        for _ in range(3):
            file.write((b"x" * 99 + b"\n") * 300_000)
    writing = time.monotonic() - began
    began = time.monotonic()
    data = await box.file("read", file="huge", start_line=5, end_line=6)
    assert data["line_count"] is None and len(data["content"]) == 100
    # Ten times the time to write a hundredth of the first file, for busy machines.
    assert first + time.monotonic() - began < max(3, 10 * writing)


async def test_endless_line_is_read_in_parts(box):
    line = "".join(f"{number}," for number in range(450_000))
    (box.home / "f").write_text(f"first\n{line}\nlast\n")
    start, seen = 0, ""
    for _ in range(10):
        data = await box.file("read", file="f", start_line=1, end_line=2, start_char=start)
        assert len(data["content"]) <= 1024 * 1024
        seen += data["content"]
        if not data["truncated"]:
            break
        start = data["next_char"]
        assert f"start_line=1, start_char={start}" in data["note"]
    assert seen == f"{line}\n"
    data = await box.file("read", file="f", start_line=1, start_char=len(line) - 3, end_char=len(line) + 3)
    assert data["content"] == "99,\nla"


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"start_line": 50}, "the file has 2 line(s), counted from 0"),
        ({"start_line": 2, "end_line": 60}, "the file has 2 line(s)"),
        ({"start_char": 9}, "4 characters"),
        ({"start_line": 1, "end_line": 1}, "exclusive"),
    ],
)
async def test_read_beyond_the_end_says_how_much_there_is(box, selection, reason):
    (box.home / "f").write_text("a\nbc")
    data = await box.file("read", file="f", **selection)
    assert (data["content"], data["line_count"]) == ("", 2) and reason in data["note"]


async def test_read_of_empty_file_says_so(box):
    (box.home / "f").touch()
    assert (await box.file("read", file="f", start_line=3))["note"] == "the file is empty"


async def test_replace_returns_count_and_fails_without_match(box):
    await box.file("write", file="f", content="a b a")
    assert (await box.file("replace", file="f", old_str="a", new_str="aa"))["replaced_count"] == 2
    assert "does not occur" in await box.file("replace", 404, file="f", old_str="zz", new_str="")
    assert "empty" in await box.file("replace", 400, file="f", old_str="", new_str="x")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 12000, "PNG image, 12 kB"),
        (b"\x7fELF\x02\x00\x00", "ELF"),
        (b"a\x00b\x00\x00c", "6 bytes"),
        (bytes(range(1, 32)) * 50 + b"\xff", "binary"),
    ],
)
async def test_binary_file_is_refused_with_its_kind(box, data, word):
    (box.home / "f").write_bytes(data)
    for name, more in (("read", {}), ("replace", {"old_str": "a", "new_str": "b"}), ("search", {"regex": "a"})):
        message = await box.file(name, 400, file="f", **more)
        assert "binary file" in message and word in message


async def test_special_files_and_folders_are_refused_without_blocking(box):
    os.mkfifo(box.home / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(box.home / "sock"))
    for name, kind in (("pipe", "regular file"), ("/dev/zero", "regular file"), ("sock", "socket"), ("/usr", "folder")):
        assert kind in await box.file("read", 400, file=name)
        await box.file("write", 400, file=name, content="x")
        await box.file("write", 400, file=name, content="x", append=True)
        assert (await box.client.get("/api/v1/file/download", params={"path": name})).status_code == 400
    listener.close()
    assert "Linux" in (await box.file("read", file="/proc/version"))["content"]


async def test_file_errors_have_clear_messages(box):
    assert await box.file("read", 404, file="no.txt") == "no such file: no.txt"
    assert "is a folder" in await box.file("read", 400, file="/usr")
    await box.file("write", file="f", content="x")
    assert "not a folder" in await box.file("write", 400, file="f/g", content="x")
    assert "too long" in await box.file("write", 400, file="x" * 300, content="x")
    assert "NUL" in await box.file("read", 400, file="a\0b")
    assert "empty" in await box.file("read", 400, file="")
    assert "end_line" in await box.file("read", 400, file="f", start_line=3, end_line=1)
    assert "sudo" in await box.file("read", 400, file="f", sudo=True)
    assert (await box.file("read", file="f", sudo=False))["content"] == "x"


async def test_write_is_atomic_and_keeps_mode(box):
    script = box.home / "run.sh"
    script.write_text("old")
    script.chmod(0o754)
    reader = script.open()
    await box.file("write", file="run.sh", content="new")
    assert reader.read() == "old"
    assert stat.S_IMODE(script.stat().st_mode) == 0o754
    assert os.listdir(box.home) == ["run.sh"]


@pytest.mark.parametrize("call", ["write", "replace", "upload"])
async def test_write_to_hard_link_changes_both_names(box, call):
    one = box.home / "one"
    one.write_text("old " * 10)
    os.link(one, box.home / "two")
    if call == "write":
        await box.file("write", file="one", content="new")
    elif call == "replace":
        await box.file("replace", file="two", old_str="old ", new_str="n")
    else:
        await box.client.post("/api/v1/file/upload", files={"file": ("x", b"new")}, data={"path": "one"})
    assert one.read_text() == (box.home / "two").read_text() == ("n" * 10 if call == "replace" else "new")
    assert os.stat(one).st_nlink == 2 and sorted(os.listdir(box.home)) == ["one", "two"]


async def test_write_keeps_extended_attributes(box):
    file = box.home / "f"
    file.write_text("old")
    try:
        os.setxattr(file, "user.origin", b"somewhere")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    await box.file("write", file="f", content="new")
    assert (file.read_text(), os.getxattr(file, "user.origin")) == ("new", b"somewhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_write_in_read_only_folder_changes_writable_file(box):
    (box.home / "d").mkdir()
    (box.home / "d" / "f").write_text("old text")
    (box.home / "d").chmod(0o555)
    await box.file("write", file="d/f", content="new")
    assert (box.home / "d" / "f").read_text() == "new"
    assert "permission denied" in await box.file("write", 400, file="d/g", content="new")
    (box.home / "d").chmod(0o755)


async def test_write_through_link_replaces_target(box):
    (box.home / "target").write_text("old")
    (box.home / "link").symlink_to("target")
    await box.file("write", file="link", content="new")
    assert (box.home / "link").is_symlink() and (box.home / "target").read_text() == "new"


async def test_search_returns_lines_and_numbers(box):
    await box.file("write", file="f", content="alpha\nbeta\r\ngamma\nalphabet\n")
    data = await box.file("search", file="f", regex="^alpha|beta$")
    assert (data["matches"], data["line_numbers"]) == (["alpha", "beta", "alphabet"], [0, 1, 3])
    assert "not a valid regex" in await box.file("search", 400, file="f", regex="(")


async def test_search_is_bounded(box):
    await box.file("write", file="f", content=("x" * 5000 + "needle" + "y" * 5000 + "\n") * 300)
    data = await box.file("search", file="f", regex="needle")
    assert len(data["matches"]) == 200 and data["truncated"]
    assert "needle" in data["matches"][0] and len(data["matches"][0]) < 600
    assert "[from character 4875]" in data["matches"][0]


@pytest.mark.parametrize(
    ("regex", "lines"),
    [
        ("^1999999$", [1_999_999]),
        (r"^19{5}\d$", [1_999_990 + number for number in range(10)]),
        (r"(?i)^199999[8-9]\s*$", [1_999_998, 1_999_999]),
        ("^[^0-8]{3}$", [999]),
        (r"\A12\Z", [12]),
        ("^1999999(?!0)$", [1_999_999]),
        ("199999(?<=99)9", [1_999_999]),
    ],
)
async def test_search_finds_lines_of_large_file(box, regex, lines):
    with open(box.home / "f", "w") as file:
        file.writelines(f"{number}\n" for number in range(2_000_000))
    data = await box.file("search", file="f", regex=regex)
    assert (data["line_numbers"], data["truncated"]) == (lines, False)


LINES = st.lists(st.text("ab \t\r\x0b", max_size=4), min_size=1, max_size=6)
PATTERNS = st.lists(
    st.sampled_from(
        ["a", "b", "^", "$", r"\s", r"\S", r"\W", r"\D+", "[^a]", "[^ab]+", ".", "a*", "(?:b|$)", r"\b", "(?!a)", r"\Z"]
    ),
    min_size=1,
    max_size=5,
).map("".join)


@given(LINES, PATTERNS)
def test_search_of_whole_text_finds_the_lines_that_match_alone(lines, pattern):
    from sandbox.files import search

    compiled, spans_lines = search._compile(pattern)
    assert not spans_lines
    single, _ = search._compile(f"{pattern}|(?!)\\n")
    block, deadline = "\n".join(lines), time.monotonic() + 60
    found = [block[start:end] for start, end, _ in search._find_by_block(block, compiled, deadline)]
    assert found == [line for line in lines if single.search(line)]


async def test_search_reaches_the_end_of_a_long_line(box):
    (box.home / "f").write_text("x" * 3_000_000 + "needle")
    data = await box.file("search", file="f", regex="needle$")
    assert data["line_numbers"] == [0] and "[from character 2999" in data["matches"][0]


async def test_search_that_takes_too_long_says_which_lines_it_left_out(box, monkeypatch):
    from sandbox.files import search

    (box.home / "f").write_text("needle\n" + "x\n" * 3_000_000)
    clock = iter(range(1000))
    monkeypatch.setattr(search.time, "monotonic", lambda: float(next(clock)))
    data = await box.file("search", file="f", regex="needle")
    assert (data["matches"], data["truncated"]) == (["needle"], True)
    assert "were not searched" in data["note"] and int(data["note"].split("line ")[1].split(",")[0]) > 1000


async def test_catastrophic_regex_times_out_without_blocking(box, monkeypatch):
    import asyncio

    from sandbox.files import search

    monkeypatch.setattr(search, "MAX_SECONDS", 2.0)
    await box.file("write", file="f", content="a" * 5000 + "b\n")
    slow = asyncio.create_task(box.file("search", 400, file="f", regex="(a|aa)+$"))
    others = 0
    while not slow.done():
        began = time.monotonic()
        await box.file("list", path="~")
        others += 1
        assert time.monotonic() - began < 1.8  # shorter than the search may take, so the search does not block the loop
    message = slow.exception() or slow.result()
    assert others > 5 and "did not finish" in str(message)


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.py", [".hidden/h.py", "a.py", "d/b.py", "d/e/c.py"]),
        ("d/*.py", ["d/b.py"]),
        ("./d/*.py", ["d/b.py"]),
        ("d/**/*.py", ["d/b.py", "d/e/c.py"]),
        ("**/*.{py,txt}", [".hidden/h.py", "a.py", "d/b.py", "d/e/c.py", "d/e/c.txt"]),
        ("{a,d/{b,e/c}}.{py,js}", ["a.py", "d/b.py", "d/e/c.py"]),
        ("**/e/**", ["d/e/", "d/e/c.py", "d/e/c.txt"]),
        ("**/", [".hidden/", "d/", "d/e/"]),
        ("e", ["d/e/"]),
        ("[ab].p?", ["a.py", "d/b.py"]),
        ("[^a].py", ["d/b.py", "d/e/c.py", ".hidden/h.py"]),
        ("[!a-b].py", ["d/e/c.py", ".hidden/h.py"]),
        ("{a..c}.py", ["a.py", "d/b.py", "d/e/c.py"]),
        ("*.{1..3}", ["odd {x} [1] (1).1"]),
        ("*{x}*", ["odd {x} [1] (1).1"]),
        ("*\\{x\\} \\[1\\]*", ["odd {x} [1] (1).1"]),
        ("*(1).?", ["odd {x} [1] (1).1"]),
        ("A.py", []),
        ("a*a*a*a*a*a*a*a*b", []),
    ],
)
async def test_find_matches_names_and_paths_without_following_links(box, glob, found):
    for name in ("a.py", "d/b.py", "d/e/c.py", "d/e/c.txt", ".hidden/h.py", "odd {x} [1] (1).1"):
        await box.file("write", file=name, content="")
    (box.home / "d" / "loop").symlink_to("..")
    data = await box.file("find", path="~", glob=glob)
    assert sorted(file.removeprefix(f"{box.home}/") for file in data["files"]) == sorted(found)


@pytest.mark.parametrize(
    ("glob", "reason"),
    [
        ("!*.py", "leave out"),
        ("@(a|b)", "{a,b}"),
        ("[[:alpha:]]*", "a-zA-Z"),
        ("/home/*.py", "`path`"),
        ("../*", "`path`"),
        ("{a,b", "not closed"),
        ("{1..99999}", "more than"),
        (" ", "empty"),
    ],
)
async def test_unsupported_glob_is_refused_with_reason(box, glob, reason):
    assert reason in await box.file("find", 400, path="~", glob=glob)


async def test_find_in_missing_file_or_closed_folder_says_so(box):
    await box.file("write", file="d/f", content="")
    assert "no such folder" in await box.file("find", 404, path="nowhere", glob="*")
    assert "not a folder" in await box.file("find", 400, path="d/f", glob="*")
    if os.geteuid() != 0:
        (box.home / "d").chmod(0)
        assert (await box.file("find", path="~", glob="*"))["unreadable"] == 1
        assert "permission denied" in await box.file("find", 400, path="d", glob="*")
        (box.home / "d").chmod(0o755)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("$HOME/v.txt", "v.txt"),
        ("${HOME}/v.txt", "v.txt"),
        ("file://{home}/a%20b.txt", "a b.txt"),
        ("file://localhost{home}/v.txt", "v.txt"),
        ("posts.$slug.tsx", "posts.$slug.tsx"),
        ("it's.txt", "it's.txt"),
        ("a%20b", "a%20b"),
    ],
)
async def test_path_in_another_notation_is_understood(box, path, meant):
    written = await box.file("write", file=path.replace("{home}", str(box.home)), content="x")
    assert written["file"] == f"{box.home}/{meant}" and os.listdir(box.home) == [meant]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("$DIR/a", "variables"),
        ("logs/$USER/a", "variables"),
        ("$(pwd)/a", "variables"),
        ("~root/a", "~ stands"),
        ("~/~/a", "~ stands"),
        ("http://a/b", "URL"),
        ("file://host/a", "URL"),
        ("C:\\a", "backslash"),
        ("C:/a", "Windows"),
        ("a\\ b", "backslash"),
        ('"a b"', "quotes"),
        ("a ", "white space"),
        ("a\nb", "control character"),
        ("folder/", "is a folder"),
    ],
)
async def test_path_that_means_something_else_is_refused_and_nothing_is_written(box, path, reason):
    assert reason in await box.file("write", 400, file=path, content="x")
    assert os.listdir(box.home) == []


async def test_existing_file_with_unusual_name_is_used(box):
    for name in ("$DIR", '"a"', "a ", "~x", "C:\\a"):
        (box.home / name).write_text("old")
        await box.file("write", file=name, content=name)
        assert (box.home / name).read_text() == name


async def test_find_and_list_are_bounded(box):
    (box.home / "many").mkdir()
    for number in range(1100):
        (box.home / "many" / f"{number:04d}").touch()
    data = await box.file("find", path="many", glob="*")
    assert len(data["files"]) == 1000 and data["truncated"]
    data = await box.file("list", path="many")
    assert len(data["entries"]) == 1000 and data["truncated"] and data["entries"][0]["name"] == "0000"


async def test_list_returns_kinds_and_sizes(box):
    await box.file("write", file="f", content="four")
    (box.home / "d").mkdir()
    (box.home / "l").symlink_to("f")
    os.mkfifo(box.home / "p")
    data = await box.file("list", path="~")
    assert [(entry["name"], entry["kind"]) for entry in data["entries"]] == [
        ("d", "directory"),
        ("f", "file"),
        ("l", "link"),
        ("p", "other"),
    ]
    assert data["entries"][1]["size"] == 4 and abs(data["entries"][1]["modified"] - time.time()) < 60
    assert "no such" in await box.file("list", 404, path="nowhere")
    assert "not a folder" in await box.file("list", 400, path="f")


async def test_download_returns_uploaded_bytes(box):
    content = os.urandom(3_000_000)
    response = await box.client.post(
        "/api/v1/file/upload", files={"file": ("x.bin", content)}, data={"path": "up/größe 1.bin"}
    )
    assert response.json()["data"] == {"file": f"{box.home}/up/größe 1.bin", "size": len(content)}
    response = await box.client.get("/api/v1/file/download", params={"path": "up/größe 1.bin"})
    assert response.content == content
    assert (
        "attachment" in response.headers["content-disposition"]
        and "%201.bin" in response.headers["content-disposition"]
    )
    response = await box.client.get("/api/v1/file/download", params={"path": "none"})
    assert (response.status_code, response.json()["message"]) == (404, "no such file: none")


async def test_download_whose_client_leaves_closes_the_file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1_000_000))
    file = (tmp_path / "a").open("rb")
    sending = asyncio.Event()

    async def send(message):
        if message.get("body"):
            sending.set()
            await asyncio.Event().wait()

    async def receive():
        await sending.wait()
        return {"type": "http.disconnect"}

    response = FileResponse(file, 1_000_000, "a")
    async with asyncio.timeout(10):
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert file.closed


async def test_file_names_that_are_not_text_are_listed(box):
    (box.home / os.fsdecode(b"bad\xff")).touch()
    assert len((await box.file("list", path="~"))["entries"]) == 1


async def test_view_of_small_file_is_whole_file(box):
    data = await box.file("write", file="f", content="one\n", view=True)
    assert data["view"] == "one\n"
    (box.home / "f").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert (await box.file("read", file="f", start_line=1, view=True))["view"] == "a\nb\n"
    assert "view" not in await box.file("read", file="f")


async def test_view_of_large_file_is_part_around_call(box):
    lines = [f"{n:06d} äöü\n" for n in range(20_000)]
    (box.home / "f").write_text("".join(lines))
    cut = r"\[\.\.\. [\d,]+ bytes of the file are not shown here \.\.\.\]"
    for call, fields, line in (
        ("read", {"start_line": 9_000}, 9_000),
        ("search", {"regex": "^012345"}, 12_345),
        ("replace", {"old_str": "015000", "new_str": "changed"}, None),
    ):
        view = (await box.file(call, file="f", view=True, **fields))["view"]
        assert re.fullmatch(rf"(?s){cut}\n.*\n{cut}", view)
        assert ("changed" if line is None else lines[line]) in view
        assert len(view.encode()) < 66_000 and "\ufffd" not in view.splitlines()[2]
    view = (await box.file("write", file="f", content="end\n", append=True, view=True))["view"]
    assert re.match(cut, view) and view.endswith("end\n")
    view = (await box.file("read", file="f", view=True))["view"]
    assert view.startswith(lines[0]) and re.search(rf"{cut}$", view)


async def test_view_of_file_that_is_no_text_is_null(box):
    assert (await box.file("write", file="f", content="%PDF-\0\1\2", view=True))["view"] is None


@pytest.mark.parametrize(
    "regex",
    [
        "(?R)",
        "(a|(?R))*",
        "(?<a>x)(?&a)",
        "(x)(?1)",
        "(?#\\)(?R)",
        "(?:x{9999}){9999}",
        "x{9}" * 9,
        "x{" + "9" * 5_000 + "}",
    ],
    ids=["whole", "nested", "named", "numbered", "comment", "counts", "many counts", "long count"],
)
async def test_search_that_could_fill_the_memory_is_refused(box, regex):
    (box.home / "a.txt").write_text("xxxx\n")
    message = await box.file("search", 400, file="a.txt", regex=regex)
    assert "regex" in message


@pytest.mark.parametrize(
    "regex", [r"\(?R", r"^\d{4}-\d{2}-\d{2}$", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "x{0}"]
)
async def test_search_with_usual_counts_is_accepted(box, regex):
    (box.home / "a.txt").write_text("xxxx\n")
    assert "matches" in await box.file("search", file="a.txt", regex=regex)


async def test_link_that_changes_after_a_path_was_resolved_does_not_lead_to_a_closed_folder(box, tmp_path):
    (tmp_path / "closed").mkdir()
    for folder in (box.home / "open", tmp_path / "closed"):
        folder.mkdir(exist_ok=True)
        (folder / "a.txt").write_text("secret")
    settings = Settings(token="t", home=box.home, closed=(tmp_path / "closed",))
    place = PathResolver(settings).resolve("open/a.txt")
    (box.home / "open").rename(box.home / "moved")
    (box.home / "open").symlink_to(tmp_path / "closed")
    with pytest.raises(Failure, match="not allowed"):
        read(place, Selection())


async def test_find_does_not_enter_a_closed_folder(make_box, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "secret.txt").write_text("x")
    box = await make_box(closed=(tmp_path / "closed",))
    found = await box.file("find", path=str(tmp_path), glob="*.txt")
    assert found["files"] == []
