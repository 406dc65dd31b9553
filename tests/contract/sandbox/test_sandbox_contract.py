"""The contract of sandboxes and their providers, which the fake and the real ones fulfil."""

import asyncio

import pytest

from app.domain.errors import SandboxFailure
from app.domain.models.sandbox import ConsoleRecord
from tests.contract.sandbox.conftest import Bench

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_exec_of_a_short_command_returns_output_and_exit_status(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    done = await sandbox.shell_exec("main", "", "echo hello")
    assert (done.shell_id, done.status, done.returncode, done.output) == ("main", "completed", 0, "hello\n")
    assert [(record.command, record.output) for record in done.console] == [("echo hello", "hello\n")]
    assert (await sandbox.shell_exec("main", "", "false")).returncode == 1


async def test_shell_may_have_any_name(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    names = ("", "my shell", "日本語", "a/../b", "x" * 500, "x" * 501, ":", "a.b:c-d_e", "my:20shell", "\ud800")
    for number, name in enumerate(names):
        await sandbox.shell_exec(name, "", "echo hello")
        if number:
            await sandbox.shell_exec(name, "", "echo more")
    for number, name in enumerate(names):
        view = await sandbox.shell_view(name)
        assert view.shell_id == name
        assert [record.command for record in view.console] == ["echo hello", "echo more"][: 1 + bool(number)]


async def test_call_on_an_unused_shell_fails_with_404(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    for call in (
        sandbox.shell_view("none of them"),
        sandbox.shell_wait("none of them", 1),
        sandbox.shell_write("none of them", "x", press_enter=True),
        sandbox.shell_kill("none of them"),
    ):
        with pytest.raises(SandboxFailure, match="no such shell: none of them") as caught:
            await call
        assert caught.value.status == 404


async def test_view_returns_one_console_record_per_command(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.shell_exec("main", "", "echo hello")
    await sandbox.shell_exec("main", "", "echo more")
    view = await sandbox.shell_view("main")
    assert [(record.command, record.output) for record in view.console] == [
        ("echo hello", "hello\n"),
        ("echo more", "more\n"),
    ]
    assert all(isinstance(record, ConsoleRecord) and record.ps1 for record in view.console)
    assert "hello" in view.output and "more" in view.output


async def test_watch_waits_for_shell_and_for_each_change(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    with pytest.raises(SandboxFailure, match="no such shell: main") as caught:
        await sandbox.shell_watch("main")
    assert caught.value.status == 404
    first = asyncio.create_task(sandbox.shell_watch("main", seconds=30))
    await asyncio.sleep(0)
    await sandbox.shell_exec("main", "", "echo hello")
    seen = await first
    while seen.status == "running" or not seen.console:
        seen = await sandbox.shell_watch("main", version=seen.version, seconds=30)
    assert [(record.command, record.output) for record in seen.console] == [("echo hello", "hello\n")]
    assert (await sandbox.shell_watch("main", version=seen.version, seconds=0.01)).version == seen.version
    change = asyncio.create_task(sandbox.shell_watch("main", version=seen.version, seconds=30))
    await sandbox.shell_exec("main", "", "echo more")
    assert (await change).version != seen.version


async def test_watch_leaves_output_to_the_agent(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.shell_exec("main", "", "cat")
    assert "typed\n" in (await sandbox.shell_write("main", "typed", press_enter=True)).output
    assert (await sandbox.shell_wait("main", 0)).output == ""
    seen = await sandbox.shell_watch("main")
    assert "typed\n" in seen.console[0].output


async def test_file_calls_return_view_of_whole_file(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    written = await sandbox.file_write("a.txt", "one\ntwo\n", append=False, sudo=False)
    assert written.view == "one\ntwo\n" and written.file.endswith("/a.txt") and written.file.startswith("/")
    assert (await sandbox.file_write("a.txt", "three\n", append=True, sudo=False)).view == "one\ntwo\nthree\n"
    assert (await sandbox.file_replace("a.txt", "two", "2", sudo=False)).view == "one\n2\nthree\n"
    assert (await sandbox.file_search("a.txt", "th", sudo=False)).view == "one\n2\nthree\n"
    assert (await sandbox.file_read("a.txt", start=1, end=2, sudo=False)).view == "one\n2\nthree\n"
    watched = await sandbox.file_watch("a.txt")
    assert (watched.content, watched.file) == ("one\n2\nthree\n", written.file)


async def test_long_command_runs_until_it_is_killed(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    assert (await sandbox.shell_exec("main", "", "sleep 60")).status == "running"
    waited = await sandbox.shell_wait("main", 0)
    assert (waited.status, waited.returncode) == ("running", None)
    with pytest.raises(SandboxFailure) as caught:
        await sandbox.shell_exec("main", "", "echo hello")
    assert caught.value.status == 409
    killed = await sandbox.shell_kill("main")
    assert killed.status == "completed" and killed.returncode
    assert (await sandbox.shell_exec("main", "", "echo hello")).output == "hello\n"


async def test_typed_text_is_returned_once(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.shell_exec("main", "", "cat")
    written = await sandbox.shell_write("main", "typed", press_enter=True)
    assert written.status == "running" and "typed\n" in written.output
    assert (await sandbox.shell_wait("main", 0)).output == ""


async def test_kill_all_ends_the_commands_of_every_shell(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.shell_exec("one", "", "sleep 60")
    await sandbox.shell_exec("my two", "", "cat")
    await sandbox.kill_all()
    for shell in ("one", "my two"):
        assert (await sandbox.shell_wait(shell, 0)).status == "completed"


async def test_file_read_returns_what_was_written(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    assert (await sandbox.file_write("notes/a.txt", "one\ntwo\nthrée\n", append=False, sudo=False)).count == 15
    assert (await sandbox.file_write("notes/a.txt", "four\n", append=True, sudo=False)).count == 5
    whole = await sandbox.file_read("notes/a.txt", start=None, end=None, sudo=False)
    assert (whole.content, whole.line_count, whole.truncated) == ("one\ntwo\nthrée\nfour\n", 4, False)
    assert (await sandbox.file_read("~/notes/a.txt", start=1, end=3, sudo=False)).content == "two\nthrée\n"
    assert (await sandbox.file_read("/home/ubuntu/notes/a.txt", start=3, end=None, sudo=False)).content == "four\n"


async def test_change_names_the_absolute_path(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    written = await sandbox.file_write("~/notes/a.txt", "x", append=False, sudo=False)
    replaced = await sandbox.file_replace("notes/a.txt", "x", "y", sudo=False)
    read = await sandbox.file_read("/home/ubuntu/notes/a.txt", start=None, end=None, sudo=False)
    assert written.file == replaced.file == read.file and read.file.startswith("/")
    assert (read.encoding, read.encoding_is_guess, read.note) == ("utf-8", False, "")


async def test_read_beyond_the_end_tells_the_number_of_lines(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.file_write("a.txt", "one\ntwo", append=False, sudo=False)
    beyond = await sandbox.file_read("a.txt", start=50, end=None, sudo=False)
    assert beyond.content == "" and "the file has 2 line(s)" in beyond.note


async def test_characters_of_the_selected_lines_are_returned(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.file_write("a.txt", "one\n0123456789\nthree\n", append=False, sudo=False)
    part = await sandbox.file_read("a.txt", start=1, end=2, start_char=3, end_char=6, sudo=False)
    assert part.content == "345"


async def test_text_that_the_encoding_cannot_hold_is_refused(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.file_write("a.txt", "Łódź\n", append=False, encoding="iso8859-2", sudo=False)
    for append in (False, True):
        with pytest.raises(SandboxFailure, match="nothing was written"):
            await sandbox.file_write("a.txt", "✓\n", append=append, encoding="iso8859-2", sudo=False)
    read = await sandbox.file_read("a.txt", start=None, end=None, encoding="iso8859-2", sudo=False)
    assert (read.content, read.encoding, read.encoding_is_guess) == ("Łódź\n", "iso8859-2", False)


async def test_replace_returns_the_count_and_fails_without_a_match(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.file_write("a.txt", "a b a\n", append=False, sudo=False)
    assert (await sandbox.file_replace("a.txt", "a", "c", sudo=False)).count == 2
    assert (await sandbox.file_read("a.txt", start=None, end=None, sudo=False)).content == "c b c\n"
    with pytest.raises(SandboxFailure, match="does not occur"):
        await sandbox.file_replace("a.txt", "nothing like it", "x", sudo=False)


async def test_search_returns_matching_lines_with_numbers(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.file_write("a.txt", "one\ntwo\nthree\n", append=False, sudo=False)
    found = await sandbox.file_search("a.txt", "^t", sudo=False)
    assert (found.matches, found.line_numbers) == (("two", "three"), (1, 2))
    with pytest.raises(SandboxFailure, match="not a valid regex"):
        await sandbox.file_search("a.txt", "(", sudo=False)


async def test_find_returns_absolute_paths(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    await sandbox.file_write("a.py", "", append=False, sudo=False)
    await sandbox.file_write("b.txt", "", append=False, sudo=False)
    found = await sandbox.file_find("~", "*.py")
    assert found.files == (f"{found.path}/a.py",) and found.path.startswith("/")
    assert (await sandbox.file_find("~", "*.rs")).files == ()


async def test_read_of_a_missing_file_fails_with_404(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    with pytest.raises(SandboxFailure, match=r"no such file: none\.txt") as caught:
        await sandbox.file_read("none.txt", start=None, end=None, sudo=False)
    assert caught.value.status == 404


async def test_session_has_one_sandbox_until_destroyed(bench: Bench) -> None:
    provider, session = bench.provider, bench.make_session()
    assert await provider.check() is None
    assert await provider.find(session) is None
    provider.warm(session)
    first, second = await asyncio.gather(provider.acquire(session), provider.acquire(session))
    found = await provider.find(session)
    assert found is not None and first.instance_id == second.instance_id == found.instance_id
    await first.file_write("a.txt", "x", append=False, sudo=False)
    await provider.destroy(session)
    await provider.destroy(session)
    assert await provider.find(session) is None
    again = await provider.acquire(session)
    assert again.instance_id != first.instance_id
    with pytest.raises(SandboxFailure):
        await again.file_read("a.txt", start=None, end=None, sudo=False)


async def test_sandbox_reports_its_parts_and_its_browser(bench: Bench) -> None:
    sandbox = await bench.sandbox()
    parts = await sandbox.status()
    assert set(parts) >= {"shell", "browser", "desktop"} and parts["shell"].ready
    assert all(part.ready or part.reason for part in parts.values())
    assert sandbox.browser.url.startswith("http://") and sandbox.browser.home.startswith("/")
    assert sandbox.browser.token and sandbox.instance_id


async def test_sessions_do_not_share_shells_or_files(bench: Bench) -> None:
    one, other = await bench.sandbox(), await bench.sandbox()
    await one.shell_exec("main", "", "echo hello")
    await one.file_write("a.txt", "x", append=False, sudo=False)
    with pytest.raises(SandboxFailure):
        await other.shell_view("main")
    with pytest.raises(SandboxFailure):
        await other.file_read("a.txt", start=None, end=None, sudo=False)
