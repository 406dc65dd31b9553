"""scripts/engine.sh, with stand-ins for the commands `docker` and `dockerd`."""

import os
import signal
import subprocess
from pathlib import Path

_SCRIPTS = Path(__file__).parents[2] / "scripts"

_DOCKER = "#!/bin/sh\n[ -e '{started}' ]\n"
_DOCKERD = "#!/bin/sh\necho $$ >'{started}'\nexec sleep 60\n"


def _write_command(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_wait_after_start_of_engine_returns_while_engine_runs(tmp_path: Path) -> None:
    started = tmp_path / "started"
    commands = tmp_path / "bin"
    commands.mkdir()
    _write_command(commands / "docker", _DOCKER.format(started=started))
    _write_command(commands / "dockerd", _DOCKERD.format(started=started))
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "ENGINE_LOG": str(tmp_path / "log"),
        "TMPDIR": str(tmp_path),
    }
    script = f". '{_SCRIPTS}/engine.sh'; ensure_engine; wait; kill -0 $(cat '{started}')"
    try:
        done = subprocess.run(["bash", "-euc", script], env=environment, timeout=30)
    finally:
        os.kill(int(started.read_text()), signal.SIGTERM)
    assert done.returncode == 0
