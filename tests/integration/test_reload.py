"""`./dev.sh`: the service restarts when its code changes."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx

from tests.support.service import ROOT


async def test_reloading_service_answers_and_ends_with_its_watcher(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")}
    watcher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "--reload"),
        cwd=ROOT,
        env={**kept, "DATA_DIR": str(tmp_path / "data"), "PORT": "0", "SANDBOX_PROVIDER": "local"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert watcher.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await watcher.stdout.readline()).decode()
        assert line.startswith("Anker listens on "), line
        async with httpx.AsyncClient(base_url=line.split()[3]) as client:
            assert (await client.get("/health")).status_code == 200
    finally:
        watcher.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            await watcher.communicate()
