"""Unusual commands that could break a shell."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
    ],
)
async def test_next_command_runs_after_odd_command(box, command):
    assert (await box.run(command))["status"] == "completed"
    data = await box.run("echo fine")
    assert (data["output"], data["returncode"], data["status"]) == ("fine\n", 0, "completed")


async def test_exit_ends_shell_and_next_command_gets_new_one(box):
    await box.run("x=1; cd /usr")
    data = await box.run("exit 3")
    assert (data["status"], data["returncode"]) == ("completed", 3)
    answer = await box.client.post("/api/v1/shell/exec", json={"id": "a", "exec_dir": "", "command": "echo [$x]; pwd"})
    assert answer.json()["data"]["output"] == "[]\n/usr\n"
    assert "new one was started" in answer.json()["message"]


async def test_exec_replaces_shell_until_program_ends(box):
    assert (await box.run("exec sh -c 'echo in; exit 5'"))["returncode"] == 5
    assert (await box.run("echo back"))["output"] == "back\n"


async def test_errexit_ends_shell(box):
    data = await box.run("set -e; false; echo not reached")
    assert (data["returncode"], data["output"]) == (1, "")
    assert (await box.run("echo fine"))["output"] == "fine\n"


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
