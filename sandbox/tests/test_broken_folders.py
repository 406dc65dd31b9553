"""Shells whose files were removed or replaced: they are made again, and no command fails for it."""

import os
import shutil

import pytest

LONG = "seq 100000"


def make_fifo(path: str) -> None:
    os.mkfifo(path)


def make_file(path: str) -> None:
    with open(path, "w"):
        pass


def make_dangling_link(path: str) -> None:
    os.symlink("/nowhere/at/all", path)


@pytest.fixture
def folders(make_box, tmp_path):
    """Return what makes a sandbox whose folders for outputs and state are apart."""

    async def make():
        return await make_box(output_dir=tmp_path / "outputs", state_dir=tmp_path / "state")

    return make


@pytest.mark.parametrize("name", ["outputs", "state"])
async def test_shell_goes_on_after_its_folder_was_removed(folders, box, tmp_path, name):
    made = await folders()
    await made.run("true")
    shutil.rmtree(tmp_path / name)
    for id in ("a", "b"):
        data = await made.run(LONG, id)
        assert data["returncode"] == 0 and data["truncated"]
        with open(data["output_file"]) as file:
            assert file.read().endswith("\n100000\n")


@pytest.mark.parametrize("replace", [make_fifo, make_file, make_dangling_link])
@pytest.mark.parametrize("depth", ["folder", "run", "file"])
async def test_shell_goes_on_without_output_file_if_something_else_has_its_name(folders, box, tmp_path, replace, depth):
    made = await folders()
    await made.run("true")
    (run,) = (tmp_path / "outputs").iterdir()
    path = {"folder": tmp_path / "outputs", "run": run, "file": run / "a-2.log"}[depth]
    shutil.rmtree(path, ignore_errors=True)
    replace(str(path))
    data = await made.run(LONG)
    assert data["returncode"] == 0 and data["truncated"] and data["output_file"] == ""
    assert "characters cut here ..." in data["output"]


async def test_shells_start_although_the_folder_for_outputs_cannot_be_made(folders, box, tmp_path):
    (tmp_path / "outputs").touch()
    made = await folders()
    assert (await made.run("echo on"))["output"] == "on\n"


async def test_output_file_that_a_command_removes_is_not_named(folders, box, tmp_path):
    made = await folders()
    data = await made.run(f"{LONG}; rm -r {tmp_path}/outputs; {LONG}")
    assert data["returncode"] == 0 and data["truncated"] and data["output_file"] == ""
    assert (await made.run("echo on"))["output_file"] != ""
