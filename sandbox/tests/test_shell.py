"""Shells as a model uses them."""

import asyncio
import os
import signal
import time

import psutil

from sandbox.shell import manager


async def test_command_returns_output_status_and_exit_code(box):
    data = await box.run("echo hi; (exit 7)")
    assert (data["output"], data["status"], data["returncode"], data["truncated"]) == ("hi\n", "completed", 7, False)
    assert data["session_id"] == "a" and data["command"] == "echo hi; (exit 7)"
    assert [row["output"] for row in data["console"]] == ["hi\n"]
    with open(data["output_file"]) as whole:
        assert whole.read() == "hi\n"


async def test_shell_state_persists_between_commands(box):
    await box.run("mkdir d; cd d; export X=1; y=2; f() { echo f$1; }; declare -A m; m[k]=v; alias q='echo aliased'")
    data = await box.run("pwd; echo $X $y; f 3; echo ${m[k]}; q; bash -c 'echo $X'")
    assert data["output"].split() == [f"{box.home}/d", "1", "2", "f3", "v", "aliased", "1"]
    assert data["console"][0]["ps1"].endswith(":~/d $")


async def test_last_exit_code_is_visible_to_next_command(box):
    await box.run("false")
    assert (await box.run("echo $?"))["output"] == "1\n"


async def test_command_for_a_shell_that_is_just_being_killed_runs_in_a_new_one(box):
    for _ in range(5):
        os.kill(int((await box.run("echo $$"))["output"]), signal.SIGKILL)
        data = await box.run("echo ran")
        assert (data["output"], data["returncode"]) == ("ran\n", 0)


async def test_exec_dir_accepts_absolute_relative_tilde_and_empty(box):
    (box.home / "sub dir").mkdir()
    assert (await box.run("pwd", exec_dir="/usr"))["output"] == "/usr\n"
    assert (await box.run("pwd"))["output"] == "/usr\n"
    assert (await box.run("pwd", exec_dir="sub dir"))["output"] == f"{box.home}/sub dir\n"
    assert (await box.run("pwd", exec_dir="~"))["output"] == f"{box.home}\n"
    assert (await box.run("pwd", exec_dir="~/sub dir"))["output"] == f"{box.home}/sub dir\n"


async def test_missing_exec_dir_is_refused_without_running(box):
    assert await box.run("touch ran", exec_dir="nowhere", status=404) == "no such folder: nowhere"
    assert not (box.home / "ran").exists()


async def test_shell_has_clean_environment(make_box, box, monkeypatch):
    monkeypatch.setenv("SANDBOX_TOKEN", "secret")
    monkeypatch.setenv("API_KEY", "secret")
    monkeypatch.setenv("PIP_INDEX_URL", "http://index")
    other = await make_box(instance="box-7")
    names = dict(line.split("=", 1) for line in (await other.run("env"))["output"].splitlines())
    assert "secret" not in str(names) and names["PIP_INDEX_URL"] == "http://index"
    assert names["ANKER_SANDBOX"] == "box-7" and names["HOME"] == str(other.home) and names["LANG"] == "C.UTF-8"
    assert (await other.run("ls /proc/self/fd | wc -l"))["output"].strip() == "4"


async def test_long_command_reports_running_and_wait_returns_new_output(quick):
    data = await quick.run("echo one; read x; echo two; read x; echo three")
    assert (data["status"], data["returncode"]) == ("running", None)
    await quick.until("one")
    assert "one" not in (await quick.write("go", shows="two"))["output"]
    assert "two" not in (await quick.write("", shows="three"))["output"]
    assert (await quick.call("/shell/wait", id="a", seconds=30))["status"] == "completed"
    assert (await quick.call("/shell/wait", id="a"))["output"] == ""


async def test_wait_returns_when_command_ends(quick):
    await quick.run("sleep 0.3; echo end")
    began = time.monotonic()
    data = await quick.call("/shell/wait", id="a", seconds=60)
    assert time.monotonic() - began < 30
    assert (data["output"], data["returncode"]) == ("end\n", 0)


async def test_wait_returns_after_timeout_of_running_command(quick):
    await quick.run("sleep 60")
    assert (await quick.call("/shell/wait", id="a", seconds=0))["status"] == "running"
    assert "less than or equal to 300" in await quick.call("/shell/wait", 400, id="a", seconds=301)


async def test_busy_shell_refuses_command_and_names_running_one(quick):
    await quick.run("sleep 60")
    message = await quick.run("echo no", status=409)
    assert "sleep 60" in message and "shell_wait" in message and "shell_kill_process" in message
    assert (await quick.run("echo yes; sleep 0", id="b"))["returncode"] in (0, None)


async def test_concurrent_commands_never_share_shell(box):
    body = {"id": "a", "exec_dir": "", "command": "until [ -e go ]; do sleep 0.01; done"}
    asked = [asyncio.create_task(box.client.post("/api/v1/shell/exec", json=body)) for _ in range(5)]
    async with asyncio.timeout(30):
        while sum(one.done() for one in asked) < 4:
            await asyncio.sleep(0.01)
    (box.home / "go").touch()
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]


async def test_two_shells_run_concurrently(box):
    # Each waits for the other, so in sequence neither would end.
    meet = "touch {0}; until [ -e {1} ]; do sleep 0.01; done; echo {0}"
    one, two = await asyncio.gather(
        box.run(meet.format("here", "there"), id="a"), box.run(meet.format("there", "here"), id="b")
    )
    assert (one["output"], two["output"]) == ("here\n", "there\n")


async def test_read_receives_written_text(quick):
    await quick.run("read -p 'name? ' x; echo hello $x")
    await quick.until("name?")
    assert (await quick.write("Ada", shows="hello"))["output"].endswith("hello Ada\n")
    assert (await quick.call("/shell/wait", id="a", seconds=30))["returncode"] == 0


async def test_python_prompt_accepts_input(quick):
    await quick.run("python3 -q")
    await quick.until(">>>")
    assert (await quick.write("print(6 * 7)", shows="42"))["status"] == "running"
    await quick.call("/shell/write", id="a", input="exit()", press_enter=True)
    assert (await quick.call("/shell/wait", id="a"))["status"] == "completed"


async def test_ctrl_c_ends_command_and_keeps_shell(quick):
    await quick.run("x=kept; printf '%s\\n' on; sleep 60; echo after")
    await quick.until("\non\n")
    await quick.call("/shell/write", id="a", input="\u0003", press_enter=False)
    data = await quick.call("/shell/wait", id="a")
    assert (data["status"], data["returncode"]) == ("completed", 130)
    assert (await quick.run("echo $x"))["output"] == "kept\n"
    assert "after" not in (await quick.call("/shell/view", id="a"))["output"].replace("echo after", "")


async def test_ctrl_c_ends_loop_in_bash(quick):
    await quick.run("x=kept; printf '%s\\n' on; while :; do :; done")
    await quick.until("\non\n")
    await quick.call("/shell/write", id="a", input="\u0003", press_enter=False)
    assert (await quick.call("/shell/wait", id="a"))["returncode"] == 130
    assert (await quick.run("echo $x"))["output"] == "kept\n"


async def test_unread_input_is_not_run_as_command(quick):
    await quick.run("sleep 0.3")
    await quick.call("/shell/write", id="a", input="touch oops", press_enter=True)
    await quick.call("/shell/wait", id="a")
    data = await quick.run("read -t 0.05 x; echo [$x]")
    assert "[]" in data["output"] or (await quick.call("/shell/wait", id="a"))["output"] == "[]\n"
    assert not (quick.home / "oops").exists()


async def test_line_written_to_idle_shell_runs(box):
    await box.run("x=5")
    assert (await box.write("echo $x", shows="5"))["output"] == "5\n"
    assert (await box.call("/shell/wait", id="a"))["status"] == "completed"
    await box.call("/shell/write", id="a", input="echo typed", press_enter=False)
    assert (await box.write(" later", shows="typed"))["output"] == "typed later\n"
    await box.call("/shell/write", id="a", input="\u0003", press_enter=True)
    assert (await box.run("echo fine"))["output"] == "fine\n"


async def test_background_job_continues_and_its_output_is_shown(box):
    data = await box.run("(read _ < fifo; echo from-behind) & mkfifo fifo; echo front; jobs -p")
    assert data["status"] == "completed" and "front" in data["output"]
    await box.run("mkfifo fifo 2>/dev/null; jobs")
    await box.run("sleep 60 & echo $!")
    pid = int((await box.run("echo $!"))["output"])
    assert psutil.pid_exists(pid)
    await box.run("(sleep 0.1; echo late) &")
    await box.until("late")


async def test_view_returns_console_records(box):
    await box.run("echo one")
    await box.run("cd /usr; echo two")
    data = await box.call("/shell/view", id="a")
    assert [(row["command"], row["output"]) for row in data["console"]] == [
        ("echo one", "one\n"),
        ("cd /usr; echo two", "two\n"),
    ]
    assert data["console"][0]["ps1"].endswith("~ $")
    assert data["output"].endswith("echo one\none\n" + data["console"][1]["ps1"] + " cd /usr; echo two\ntwo\n")
    assert (data["status"], data["returncode"]) == ("completed", 0)


async def test_view_keeps_last_hundred_commands(box):
    for number in range(105):
        await box.run(f"echo {number}")
    data = await box.call("/shell/view", id="a")
    assert len(data["console"]) == 100 and data["console"][0]["output"] == "5\n"
    assert data["console"][-1]["output"] == "104\n"


async def test_progress_bars_and_colors_are_resolved(box):
    command = r"for i in 1 2 3; do printf '\r\033[32m%s0%%\033[0m' $i; done; printf '\r\033[Kdone\n'; printf 'ab\bc\n'"
    assert (await box.run(command))["output"] == "done\nac\n"


async def test_multi_line_command_and_here_document_run(box):
    assert (await box.run("cat <<'X'\n$HOME 'q\nX\nfor i in 1 2\ndo\n  echo $i # note\ndone # end"))["output"] == (
        "$HOME 'q\n1\n2\n"
    )


async def test_ten_kilobyte_command_line_runs(box):
    word = "x" * 10_000
    assert (await box.run(f"echo {word} | wc -c"))["output"].strip() == "10001"


async def test_large_output_is_bounded_and_complete_in_file(box):
    data = await box.run("seq 1 200000")
    assert data["truncated"] and len(data["output"]) < 17_000
    assert data["output"].startswith("1\n2\n") and data["output"].endswith("199999\n200000\n")
    assert data["output_file"] in data["output"] and "characters cut here" in data["output"]
    assert os.path.getsize(data["output_file"]) == len("".join(f"{n}\n" for n in range(1, 200001)))
    assert len((await box.call("/shell/view", id="a"))["output"]) < 17_000


async def test_medium_output_is_cut_in_middle(box):
    data = await box.run("seq 1 5000")
    assert data["truncated"] and data["output"].startswith("1\n2\n") and data["output"].endswith("5000\n")
    await box.run("true")
    assert len((await box.call("/shell/view", id="a"))["console"][0]["output"]) < 5000


async def test_endless_output_leaves_service_responsive_and_can_be_killed(quick):
    async def slowest() -> float:
        longest = 0.0
        for _ in range(20):
            began = time.monotonic()
            await quick.run("echo hi", id="b")
            longest = max(longest, time.monotonic() - began)
        return longest

    alone = await slowest()
    await quick.run("yes")
    assert await slowest() < max(0.5, 5 * alone)
    assert (await quick.call("/shell/kill", id="a"))["status"] == "completed"
    assert (await quick.run("echo well"))["output"].endswith("well\n")


async def test_binary_output_is_rendered_safely(box):
    # Random bytes may leave the cursor anywhere, but none of them may get through unrendered.
    data = await box.run("head -c 100000 /dev/urandom; echo; echo end")
    assert (data["status"], data["returncode"]) == ("completed", 0)
    assert not any(ord(char) < 32 and char not in "\n\t" for char in data["output"])
    assert (await box.run("echo fine"))["output"] == "fine\n"


async def test_unknown_shell_and_invalid_id_errors_name_the_id(box):
    for path, more in (("view", {}), ("wait", {}), ("kill", {}), ("write", {"input": "x", "press_enter": True})):
        assert "no such shell: zz" in await box.call(f"/shell/{path}", 404, id="zz", **more)
    for bad in ("", "a b", "x" * 129, "../x"):
        assert "shell id" in await box.run("true", id=bad, status=400)


async def test_shell_limit_evicts_killed_shell(box, monkeypatch):
    monkeypatch.setattr(manager, "MAX_SHELLS", 8)
    for number in range(8):
        await box.run("true", id=f"s{number}")
    assert "shell_kill_process" in await box.run("true", id="more", status=409)
    await box.call("/shell/kill", id="s3")
    assert (await box.run("echo in", id="more"))["output"] == "in\n"
    assert "no such shell" in await box.call("/shell/view", 404, id="s3")


async def test_watch_returns_at_each_change_without_taking_output_from_agent(quick):
    await quick.run("read x; echo $x; read x")
    seen = await quick.call("/shell/watch", id="a")
    assert seen["status"] == "running" and seen["console"][0]["command"] == "read x; echo $x; read x"
    watching = asyncio.create_task(quick.call("/shell/watch", id="a", version=seen["version"], seconds=30))
    await quick.call("/shell/write", id="a", input="typed", press_enter=True)
    assert (await watching)["version"] != seen["version"]
    await quick.until("typed\n")


async def test_watch_waits_for_shell_that_does_not_exist_yet(box):
    watching = asyncio.create_task(box.call("/shell/watch", id="later", seconds=30))
    await asyncio.sleep(0)
    await box.run("echo hi", id="later")
    assert (await watching)["session_id"] == "later"
    assert "no such shell" in await box.call("/shell/watch", 404, id="never", seconds=0.01)
