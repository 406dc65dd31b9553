"""A service that cannot start prints one line that names the setting, and nothing else."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT, ServiceProcess


async def output_of_failed_start(data_dir: Path, **settings: str) -> str:
    """Return the output of `python -m app`, which must not start."""
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


async def test_second_service_on_same_data_dir_names_the_first_process(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path / "data")
    client = await service.start()
    assert service.process is not None
    output = await output_of_failed_start(tmp_path / "data")
    assert output == f"DATA_DIR: {tmp_path / 'data'} is in use by another process ({service.process.pid})"
    assert (await client.http.get("/health")).status_code == 200
    await client.close()
    await service.stop()


async def test_data_dir_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (await output_of_failed_start(tmp_path / "file")).startswith(
        f"DATA_DIR: {tmp_path / 'file'} cannot be used: "
    )


async def test_used_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        output = await output_of_failed_start(tmp_path, PORT=str(taken.getsockname()[1]))
    assert output.startswith("PORT: cannot listen on 127.0.0.1, port ")
    assert output.endswith("address already in use")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_service_without_a_login_that_others_can_reach_is_refused(tmp_path: Path, host: str) -> None:
    output = await output_of_failed_start(tmp_path, HOST=host)
    assert output.startswith(f"HOST: others can connect to {host}, and there is no login: set API_TOKENS")


@pytest.mark.parametrize("host", ["300.1.1.1", "192.0.2.1"])
async def test_foreign_host_address_is_named(tmp_path: Path, host: str) -> None:
    assert (await output_of_failed_start(tmp_path, HOST=host)).startswith(f"HOST: cannot listen on {host}, port 0: ")


async def test_mistake_in_models_config_is_named_with_its_line(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.fast]\nmodel = "m"\napi_key_env = "NO_SUCH_KEY"\n')
    output = await output_of_failed_start(tmp_path, MODELS_CONFIG=str(models))
    reason = "NO_SUCH_KEY is not set, in the environment or in .env"
    assert output == f"MODELS_CONFIG: {models}, line 3, models.fast.api_key_env: {reason}"


async def test_unknown_planner_model_is_named(tmp_path: Path) -> None:
    output = await output_of_failed_start(tmp_path, PLANNER_MODEL="careful")
    assert output == "PLANNER_MODEL: unknown; the models are default"
