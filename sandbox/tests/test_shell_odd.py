"""Unusual commands that could break a shell."""

import asyncio
import errno
import os
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.shell import bash


@pytest.mark.parametrize(
    "command",
    ["echo 'abc", 'echo "abc', "foo(", "if true; then", "echo $(", "for", "case x in", "{", "echo `x", "a <<X\n$("],
)
async def test_unfinished_command_ends_with_error(box, command):
    data = await box.run(command)
    assert data["status"] == "completed"
    assert data["returncode"] != 0 or "warning" in data["output"]
    assert (await box.run("echo fine"))["output"] == "fine\n"


@pytest.mark.parametrize(
    "command",
    [
        "unset PROMPT_COMMAND PS1",
        "PS1='x$ '; PROMPT_COMMAND=",
        "PROMPT_COMMAND=; PS1=; break 99",
        "set -e",
        "set -u; true",
        "set -x",
        "set -euxo pipefail",
        "set -n; set -v",
        "set -f -C; set +m",
        "exec 1>/dev/null",
        "exec 0</dev/null 1>&- 2>&-",
        "trap 'echo debug' DEBUG; trap 'echo err' ERR; trap 'echo return' RETURN; trap 'echo int' INT",
        "break; continue",
        "return 4",
        "stty -echo raw",
        "IFS=x; LC_ALL=C; unset HOME PATH; PATH=/usr/bin:/bin",
        "read() { :; }; printf() { :; }; eval() { :; }; cd() { :; }",
        "alias echo=echo; alias builtin=false",
        "printf '\\033]7717;x;1;E;0\\007'",
        "set",
        "tput smcup; printf '\\033[?25l\\033[2J'",
        "kill -INT $$",
        "mkdir gone; cd gone; rmdir ../gone",
        "ulimit -n 4",
        "ulimit -n 5",
        "ulimit -n 6",
    ],
)
async def test_next_command_runs_after_odd_command(box, command):
    assert (await box.run(command))["status"] == "completed"
    data = await box.run("echo fine")
    assert (data["output"], data["returncode"], data["status"]) == ("fine\n", 0, "completed")


LOST = "the next command starts a new one in {}; variables, functions and jobs are gone"


async def test_exit_ends_shell_and_next_command_gets_new_one(box):
    await box.run("x=1; cd /usr")
    data = await box.run("exit 3")
    assert (data["status"], data["returncode"]) == ("completed", 3)
    assert data["note"] == f"the shell ended with status 3: {LOST.format('/usr')}"
    data = await box.run("echo [$x]; pwd")
    assert (data["output"], data["returncode"]) == ("[]\n/usr\n", 0)
    assert data["note"].startswith("the shell had ended, so a new one was started")
    assert (await box.run("true"))["note"] == ""


async def test_new_shell_starts_in_folder_of_command_that_ended_old_one(box):
    assert LOST.format("/usr") in (await box.run("exit", exec_dir="/usr"))["note"]
    assert (await box.run("pwd"))["output"] == "/usr\n"


@pytest.mark.parametrize(
    ("command", "returncode", "cause"),
    [
        ("exit 256", 0, "ended with status 0"),
        ("exit -1", 255, "ended with status 255"),
        ("trap 'echo bye' EXIT; exit 4", 4, "ended with status 4"),
        ("set -e; trap 'echo bye' EXIT; false", 1, "ended with status 1"),
        ("exec sh -c 'exit 5'", 5, "ended with status 5"),
        ("set -eu; echo $nope; echo not reached", 1, "ended with status 1"),
        ("kill -9 $$", 137, "was killed (SIGKILL: by a command, or because memory ran out)"),
        ("kill -SEGV $$", 139, "was killed (SIGSEGV)"),
        ("exec sh -c 'kill -TERM $$'", 143, "was killed (SIGTERM)"),
        ("ulimit -v 1000; x=$(printf '%9999999d' 1)", 2, "ended with status 2"),
        ("printf 'exit 6\n' >s.sh; . ./s.sh; echo not reached", 6, "ended with status 6"),
    ],
)
async def test_command_that_ends_shell_says_so_with_true_exit_code(box, command, returncode, cause):
    data = await box.run(command)
    assert (data["status"], data["returncode"]) == ("completed", returncode)
    assert data["note"] == f"the shell {cause}: {LOST.format('~')}"
    assert "not reached" not in data["output"]
    assert (await box.run("echo fine"))["output"] == "fine\n"


async def test_wait_reports_end_of_shell(quick):
    await quick.run("read x; exit 3")
    await quick.call("/shell/write", id="a", input="", press_enter=True)
    data = await quick.call("/shell/wait", id="a", seconds=30)
    assert data["returncode"] == 3 and data["note"].startswith("the shell ended with status 3")
    assert (await quick.call("/shell/view", id="a"))["note"] == data["note"]


async def test_shell_that_is_killed_between_commands_is_reported_to_next_one(box):
    pid = (await box.run("echo $$"))["output"].strip()
    await box.run(f"kill -9 {pid}; until ! kill -0 {pid}; do :; done 2>/dev/null", id="b")
    assert "a new one was started" in (await box.run("true"))["note"]


@pytest.mark.parametrize(
    ("command", "returncode", "output"),
    [
        ("set -e; false; echo no", 1, ""),
        ("set -euo pipefail; false | true; echo no", 1, ""),
        ("set -e; f() { g; echo no; }; g() { return 6; }; f; echo no", 6, ""),
        ("printf 'set -e\nfalse\necho no\n' >s.sh; . ./s.sh; echo no", 1, ""),
        ("set -e; for i in 1 2; do while :; do (exit 7); done; done; echo no", 7, ""),
        ("set -e; x=$(exit 5); echo no", 5, ""),
        ("set -e; f() { false; echo in; }; if f; then echo yes; fi", 0, "in\nyes\n"),
        ("set -e; if false; then :; fi; false || true; ! true; echo yes", 0, "yes\n"),
        ("set -e; (false; echo in) || echo no", 0, "in\n"),
        ("set -e; { false; echo no; } | cat; echo yes", 0, "yes\n"),
        ("set -u; echo $nope; echo no", 1, "bash: nope: unbound variable\n"),
        ("exec nosuch", 127, "bash: exec: nosuch: not found\n"),
        ("false | true", 0, ""),
        ("set -o pipefail; (exit 8) | true", 8, ""),
        ("sh -c 'kill -11 $$'", 139, "Segmentation fault\n"),
        ("bash -c 'exit 300'", 44, ""),
        ("(exit 9) & wait $! 2>/dev/null", 9, None),
        ("builtin() { :; }; false", 1, ""),
        ("readonly PROMPT_COMMAND PS1; false", 1, ""),
    ],
)
async def test_failure_keeps_shell_and_its_state(box, command, returncode, output):
    await box.run("export KEPT=1")
    data = await box.run(command)
    assert (data["returncode"], data["note"]) == (returncode, "")
    assert output in (None, data["output"])
    data = await box.run("echo $? $KEPT; false; echo fine")
    assert (data["output"], data["note"]) == (f"{returncode} 1\nfine\n", "")


async def test_syntax_error_names_line_of_command(box):
    data = await box.run("echo one\nfoo(")
    assert data["returncode"] == 2 and "eval: line 2: syntax error" in data["output"]


async def test_removed_private_folder_gives_new_shell(box, tmp_path):
    await box.run("true")
    await box.run(f"rm -rf {tmp_path}/out0/*/shell-*")
    assert (await box.run("echo fine"))["output"] == "fine\n"
    rows = (await box.call("/shell/view", id="a"))["console"]
    assert [row["command"] for row in rows if row["command"] == "echo fine"] == ["echo fine"]


async def test_bashrc_that_breaks_shell_is_skipped(box):
    (box.home / ".bashrc").write_text("exit 1\n")
    assert (await box.run("echo fine"))["output"] == "fine\n"


async def test_bashrc_of_home_is_read(box):
    (box.home / ".bashrc").write_text("export FROM_RC=yes\necho noise\n")
    assert (await box.run("echo $FROM_RC"))["output"] == "yes\n"


async def test_command_with_nul_is_refused(box):
    assert "NUL" in await box.run("echo a\0b", status=400)


async def test_any_command_leaves_shell_usable(box):
    words = st.sampled_from([*list("'\"`$(){}[]|&;<>\\#!*~ \n\t="), "x", "if", "do", "<<E", "$((", "é", "\x1b["])

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(words, max_size=12).map("".join))
    def build(command: str) -> None:
        commands.append(command)

    commands: list[str] = []
    await asyncio.to_thread(build)
    for command in commands:
        # Stars would name files and `&` starts jobs; neither does harm in an empty home.
        data = await box.run(command, id="fuzz")
        if data["status"] == "running":  # the command reads its input
            await box.call("/shell/kill", id="fuzz")
        assert "7717" not in data["output"] and "\x1b" not in data["output"]
        fine = await box.run("echo fine", id="fuzz")
        # A background job of the command may still write something.
        assert "fine\n" in fine["output"] and fine["returncode"] == 0, command


@pytest.mark.parametrize("missing", ["process", "thread"])
async def test_shell_at_limit_of_processes_is_refused_with_advice_until_others_are_killed(box, monkeypatch, missing):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) if missing == "process" else RuntimeError

    async def shell_state():
        return (await box.client.get("/api/v1/status")).json()["data"]["shell"]

    await box.run("sleep 611 &")
    open_files = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        target, name = ("subprocess", "Popen") if missing == "process" else ("threading", "Thread")
        patch.setattr(bash, target, SimpleNamespace(**vars(getattr(bash, target)) | {name: refuse}))
        message = await box.run("true", id="b", status=503)
        assert "limit of processes" in message and "shell_kill_process" in message
        assert (await shell_state())["ready"]
        await box.call("/shell/kill", id="a")
        assert await shell_state() == {"ready": False, "reason": message}
        assert len(os.listdir("/proc/self/fd")) == len(open_files)
    assert (await shell_state())["ready"]
    assert (await box.run("echo fine", id="b"))["output"] == "fine\n"
