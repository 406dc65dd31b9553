"""Limits of the file API: allowed folders, the alias, uploads."""

import os


async def test_roots_confine_file_api_after_resolving_links(make_box, box, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    inner = await make_box(roots=(tmp_path / "home1",))
    (inner.home / "link").symlink_to(outside)
    (inner.home / "file").symlink_to(outside / "secret")
    for path in (
        str(outside / "secret"),
        "../outside/secret",
        "link/secret",
        "file",
        "/etc/passwd",
        "link/../outside/x",
    ):
        message = await inner.file("read", 400, file=path)
        assert "not allowed" in message and "work in ~" in message
        assert "not allowed" in await inner.file("replace", 400, file=path, old_str="x", new_str="y")
        assert (await inner.client.get("/api/v1/file/download", params={"path": path})).status_code == 400
    for path in ("link/new", "link/new/deep", "file", f"{inner.home}-evil/x"):
        assert "not allowed" in await inner.file("write", 400, file=path, content="y")
    assert "not allowed" in await inner.file("list", 400, path="link")
    assert "not allowed" in await inner.file("find", 400, path="/", glob="*")
    assert (outside / "secret").read_text() == "x" and os.listdir(outside) == ["secret"]
    await inner.file("write", file="fine", content="y")


async def test_error_names_callers_path_instead_of_real_path(make_box, tmp_path):
    inner = await make_box(roots=(tmp_path / "home0",), home_alias="/home/ubuntu")
    (inner.home / "folder").mkdir()
    (inner.home / "binary").write_bytes(bytes(range(256)) * 10)
    os.mkfifo(inner.home / "pipe")
    for status, path in ((400, "~"), (400, "/home/ubuntu/folder"), (400, "~/binary"), (400, "pipe"), (404, "x")):
        for verb, more in (("read", {}), ("replace", {"old_str": "a", "new_str": "b"})):
            message = await inner.file(verb, status, file=path, **more)
            assert path in message and str(tmp_path) not in message
    assert str(tmp_path) not in await inner.file("read", 400, file="/etc/passwd")


async def test_alias_resolves_to_home(make_box, box):
    other = await make_box(home_alias="/home/ubuntu")
    await other.file("write", file="/home/ubuntu/d/f", content="x")
    assert (other.home / "d" / "f").read_text() == "x"
    assert (await other.file("list", path="/home/ubuntu"))["path"] == str(other.home)
    assert (await other.run("pwd", exec_dir="/home/ubuntu/d"))["output"] == f"{other.home}/d\n"
    assert "no such file" in await other.file("read", 404, file="/home/ubuntu2/f")


async def test_large_upload_is_streamed_and_replaces_atomically(box):
    block = os.urandom(1024 * 1024)

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\nbig\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="b"\r\n\r\n'
        for _ in range(40):
            yield block
        yield b"\r\n--x--\r\n"

    async def pieces():
        for piece in body():
            yield piece

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = await box.client.post("/api/v1/file/upload", content=pieces(), headers=headers)
    assert response.json()["data"]["size"] == 40 * 1024 * 1024
    assert os.listdir(box.home) == ["big"]


async def test_closed_folder_below_root_is_refused_except_inner_roots(make_box, tmp_path):
    (tmp_path / "secret").write_text("x")
    inner = await make_box(roots=(tmp_path.parent, tmp_path / "home0"), closed=(tmp_path,))
    assert "not allowed" in await inner.file("read", 400, file=str(tmp_path / "secret"))
    assert "not allowed" in await inner.file("read", 400, file="../secret")
    await inner.file("write", file="fine", content="y")
    beside = tmp_path.parent / f"{tmp_path.name}-beside"
    await inner.file("write", file=str(beside), content="y")
    beside.unlink()
