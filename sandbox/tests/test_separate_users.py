"""The service with an agent's user that is not its own. Root runs these tests, and the agent is `nobody`."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.identity import Identity, prepare_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")

AGENT = "nobody"


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder that every user may reach, with a home of the agent and a file of root only."""
    folder = Path(tempfile.mkdtemp(prefix="anker-users-"))
    folder.chmod(0o755)
    agent = Identity.of_user(AGENT)
    (folder / "home").mkdir(mode=0o700)
    os.chown(folder / "home", agent.uid, agent.gid)
    (folder / "tmp").mkdir(mode=0o1777)
    (folder / "tmp").chmod(0o1777)
    prepare_folder(folder / "state", Identity.of_user(""))
    (folder / "secret").write_text("secret\n")
    (folder / "secret").chmod(0o600)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def apart(make_box, box, place):
    """Return a sandbox whose commands and file calls run as `nobody`."""
    return await make_box(
        user=AGENT, home=place / "home", output_dir=place / "tmp" / "out", state_dir=place / "state", exec_seconds=10
    )


async def test_command_runs_as_agent_in_its_home(apart, place):
    output = (await apart.run("id -un; pwd; stat -c %U $(tty); echo $USER $HOME"))["output"]
    assert output == f"{AGENT}\n{place}/home\n{AGENT}\n{AGENT} {place}/home\n"


async def test_files_that_calls_write_belong_to_agent(apart, place):
    await apart.file("write", file="deep/a", content="x")
    await apart.client.post("/api/v1/file/upload", files={"file": ("x", b"y")}, data={"path": "b"})
    await apart.run("umask 077; echo hidden >c")
    uid = Identity.of_user(AGENT).uid
    assert {path.stat().st_uid for path in (place / "home").rglob("*")} == {uid}
    assert (await apart.file("read", file="c"))["content"] == "hidden\n"
    assert (await apart.client.get("/api/v1/file/download", params={"path": "c"})).content == b"hidden\n"


async def test_file_calls_have_no_more_rights_than_agent(apart, place):
    secret = str(place / "secret")
    for name, more in (
        ("read", {}),
        ("write", {"content": "x"}),
        ("write", {"content": "x", "append": True}),
        ("replace", {"old_str": "s", "new_str": "t"}),
        ("search", {"regex": "s"}),
    ):
        assert "permission denied" in await apart.file(name, 400, file=secret, **more), name
    response = await apart.client.get("/api/v1/file/download", params={"path": secret})
    assert response.status_code == 400 and "permission denied" in response.text
    upload = {"files": {"file": ("x", b"y")}, "data": {"path": str(place / "new")}}
    assert "permission denied" in (await apart.client.post("/api/v1/file/upload", **upload)).text
    assert (place / "secret").read_text() == "secret\n" and not (place / "new").exists()
    assert "no such folder" in await apart.run("true", exec_dir="/root/x", status=404)


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/environ",
        "/proc/self/maps",
        "/proc/thread-self/status",
        "/proc/self/fdinfo/0",
        "{state}/x",
        "~/link/maps",
    ],
)
async def test_file_calls_do_not_reach_the_program(apart, place, path):
    await apart.run("ln -sfn /proc/self ~/link")
    path = path.format(state=place / "state")
    assert "not allowed" in await apart.file("read", 400, file=path)
    assert "not allowed" in await apart.file("write", 400, file=path, content="x")
    response = await apart.client.get("/api/v1/file/download", params={"path": path})
    assert response.status_code == 400 and "not allowed" in response.text
    assert "not allowed" in await apart.file("list", 400, path=os.path.dirname(path))
    assert "not allowed" in await apart.file("find", 400, path=os.path.dirname(path), glob="*")


async def test_file_calls_do_not_reach_threads_of_the_program(apart):
    await apart.run("true")
    threads = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    assert threads
    for thread in threads:
        assert "not allowed" in await apart.file("read", 400, file=f"/proc/{thread}/maps")
        assert "not allowed" in await apart.file("find", 400, path=f"/proc/{thread}", glob="*")


async def test_state_of_shells_cannot_be_listed_or_changed_by_agent(apart, place):
    await apart.run("true")
    (run,) = (place / "state").iterdir()
    output = (
        await apart.run(
            f"ls {place}/state; ls {run}; state=$(dirname ${{PROMPT_COMMAND##* }}); ls $state; "
            "rm -f $state/loop; echo exit >>$state/loop; echo x >$state/fifo; : >$state/new; chmod 777 $state; true"
        )
    )["output"]
    assert output.count("ermission denied") + output.count("not permitted") == 8, output
    assert (await apart.run("echo on"))["output"] == "on\n"


async def test_shell_whose_commands_are_stolen_is_replaced(apart):
    await apart.run("setsid cat <$(dirname ${PROMPT_COMMAND##* })/fifo >~/got &")
    data = [await apart.run("echo on") for _ in range(3)]
    assert [each["output"] for each in data] == ["on\n"] * 3


async def test_shell_killed_by_agent_is_replaced_and_told(apart):
    killed = await apart.run("kill -9 $$")
    assert killed["returncode"] == 137 and "the shell was killed" in killed["note"]
    assert (await apart.run("echo on"))["output"] == "on\n"


async def test_kill_ends_processes_of_agent(apart):
    marker = f"{900 + secrets.randbelow(90)}.{secrets.randbelow(10**6)}"
    count = f"pgrep -fc 'sleep [{marker[0]}]{marker[1:]}'"
    await apart.run(f"(trap '' TERM; exec sleep {marker}) & setsid sleep {marker} & disown -a")
    await apart.run(f"until [ $({count}) = 2 ]; do sleep 0.02; done")
    await apart.call("/shell/kill", id="a")
    assert (await apart.run(f"{count} || true"))["output"] == "0\n"
