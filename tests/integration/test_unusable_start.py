"""A service that cannot start says why in one line that names the variable, and nothing else."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT, ServiceProcess


async def refused(data_dir: Path, **settings: str) -> str:
    """What `python -m app` says when it does not start."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app"),
        cwd=ROOT,
        env={**kept, "DATA_DIR": str(data_dir), "PORT": "0", "SANDBOX_PROVIDER": "local", **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 1
    lines = output.decode().splitlines()
    assert len(lines) == 1, output.decode()
    return lines[0]


async def test_a_second_service_on_the_same_data_folder_is_told_who_has_it(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path / "data")
    client = await service.start()
    assert service.process is not None
    said = await refused(tmp_path / "data")
    assert said == f"DATA_DIR: {tmp_path / 'data'} is in use by another process ({service.process.pid})"
    assert (await client.http.get("/health")).status_code == 200
    await client.close()
    await service.stop()


async def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (await refused(tmp_path / "file")).startswith(f"DATA_DIR: {tmp_path / 'file'} cannot be used: ")


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = await refused(tmp_path, PORT=str(taken.getsockname()[1]))
    assert said.startswith("PORT: cannot listen on 127.0.0.1, port ")
    assert said.endswith("address already in use")


@pytest.mark.parametrize("host", ["300.1.1.1", "192.0.2.1"])
async def test_an_address_that_is_not_this_machines_is_named(tmp_path: Path, host: str) -> None:
    assert (await refused(tmp_path, HOST=host)).startswith(f"HOST: cannot listen on {host}, port 0: ")
